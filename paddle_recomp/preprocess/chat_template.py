"""Chat templates: from the turns of a conversation to the prompt that the language model
expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from paddle_recomp.errors import QuestionError

IMAGE_PLACEHOLDER = "<image>"
"""Where the visual tokens of a picture go in a prompt."""

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class ChatTemplate:
    """The pieces of text around questions and answers. A conversation is `begin`, then for each
    turn `before_question`, its pictures, the question and `after_question`; and where the turn has
    an answer, `before_answer`, the answer and `after_answer`."""

    begin: str
    before_question: str
    after_question: str
    before_answer: str
    after_answer: str
    image: str = f"{IMAGE_PLACEHOLDER}\n"
    """Stands in front of a question once for each picture that has no place of its own in it."""


TEMPLATES: Mapping[str, ChatTemplate] = {
    # LLaVA 1.5 as its authors published it: a system prompt, each answer closed by `</s>`.
    "vicuna_v1": ChatTemplate(
        begin=f"{VICUNA_SYSTEM} ",
        before_question="USER: ",
        after_question=" ASSISTANT:",
        before_answer=" ",
        after_answer="</s>",
    ),
    # The template of the llava-1.5 checkpoints in the transformers layout: no system prompt.
    "llava_hf": ChatTemplate(
        begin="",
        before_question="USER: ",
        after_question=" ASSISTANT:",
        before_answer=" ",
        after_answer=" ",
    ),
}


@dataclass(frozen=True)
class Turn:
    """A question, the answer to it (None while it is awaited) and how many pictures it brings.
    They stand in front of the question, unless it has a place (`<image>`) for each."""

    question: str
    answer: str | None = None
    images: int = 0


def render(template: ChatTemplate, turns: Sequence[Turn]) -> str:
    """The prompt of a conversation; it ends where the next answer begins.

    Raises: QuestionError when there is no turn, or an earlier turn has no answer."""
    if not turns:
        raise QuestionError("there is no question: a conversation needs at least one turn")
    for number, turn in enumerate(turns[:-1], start=1):
        if turn.answer is None:
            raise QuestionError(f"turn {number} of {len(turns)} has no answer")
    prompt = template.begin
    for turn in turns:
        pictures = template.image * (turn.images - turn.question.count(IMAGE_PLACEHOLDER))
        prompt += template.before_question + pictures + turn.question + template.after_question
        if turn.answer is not None:
            prompt += template.before_answer + turn.answer + template.after_answer
    return prompt


def spoken(template: ChatTemplate, turns: Sequence[Turn]) -> str:
    """A conversation up to the last word of its last answer, where the language model stopped. The
    template's text behind the answer is left out, and so is white space at the end, even the space
    in front of an empty answer.

    Raises: as `render`; QuestionError when the last turn has no answer."""
    prompt = render(template, [*turns[:-1], replace(turns[-1], answer=None)])
    answer = turns[-1].answer
    if answer is None:
        raise QuestionError(f"turn {len(turns)} of {len(turns)} has no answer")
    return f"{prompt}{template.before_answer}{answer}".rstrip()


def check_question(text: str, num_images: int) -> str:
    """The question without the white space around it.

    Raises: QuestionError when it has no words, or when it has places for pictures (`<image>`), but
    not one for each of `num_images`."""
    question = text.strip()
    if not without_images(question):
        raise QuestionError("the question is empty")
    places = question.count(IMAGE_PLACEHOLDER)
    if places not in (0, num_images):
        raise QuestionError(
            f"the question's places for pictures ({IMAGE_PLACEHOLDER}): {places}, its pictures: "
            f"{num_images}; expected one place for each, or none: then they stand in front of it"
        )
    return question


def clip_text(
    question: str,
    num_images: int,
    template: ChatTemplate,
    source: Literal["question", "prompt_first_line"],
) -> str:
    """The text of a question that CLIP reads, from either `question_source`: the words of the
    question, or line 0 of its prompt."""
    if source == "question":
        return without_images(question)
    return first_line(render(template, [Turn(question, images=num_images)]))


def without_images(question: str) -> str:
    """The words of a question, without the places of its pictures."""
    return question.replace(IMAGE_PLACEHOLDER, " ").strip()


def first_line(prompt: str) -> str:
    """Line 0 of a prompt without the pictures' places: CLIP reads it in the public code.

    With `vicuna_v1` that is the system prompt and `USER:`, so the question is not in it."""
    return prompt.split("\n", 1)[0].replace(IMAGE_PLACEHOLDER, "").strip()
