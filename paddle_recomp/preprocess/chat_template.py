"""Chat templates: turns in, the prompt that the language model was trained on out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from paddle_recomp.errors import ConfigError, QuestionError

IMAGE_PLACEHOLDER = "<image>"
"""Where the visual tokens of a picture go in a prompt."""

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Turn:
    """A question, the answer to it (None while it is awaited) and how many pictures it brings.
    They stand in front of the question, unless it has a place (`<image>`) for each."""

    question: str
    answer: str | None = None
    images: int = 0


def vicuna_v1(turns: Sequence[Turn]) -> str:
    """LLaVA 1.5 as its authors published it: a system prompt, each answer closed by `</s>`."""
    prompt = VICUNA_SYSTEM + " "
    for turn in turns:
        prompt += f"USER: {_with_images(turn)} ASSISTANT:"
        if turn.answer is not None:
            prompt += f" {turn.answer}</s>"
    return prompt


def llava_hf(turns: Sequence[Turn]) -> str:
    """The chat template of the llava-1.5 checkpoints in the transformers layout: no system."""
    prompt = ""
    for turn in turns:
        prompt += f"USER: {_with_images(turn)} ASSISTANT:"
        if turn.answer is not None:
            prompt += f" {turn.answer} "
    return prompt


TEMPLATES: dict[str, Callable[[Sequence[Turn]], str]] = {
    "vicuna_v1": vicuna_v1,
    "llava_hf": llava_hf,
}


def render(template: str, turns: Sequence[Turn]) -> str:
    """The prompt of a conversation; it ends where the next answer begins.

    Raises: ConfigError naming an unknown template; QuestionError when there is no turn, or an
    earlier turn has no answer."""
    if template not in TEMPLATES:
        raise ConfigError(f"unknown chat template {template!r}; known: {', '.join(TEMPLATES)}")
    if not turns:
        raise QuestionError("there is no question: a conversation needs at least one turn")
    for number, turn in enumerate(turns[:-1], start=1):
        if turn.answer is None:
            raise QuestionError(f"turn {number} of {len(turns)} has no answer")
    return TEMPLATES[template](turns)


def spoken(template: str, turns: Sequence[Turn]) -> str:
    """A conversation up to its last answer, without what the template closes the answer with: as
    far as a language model has come that has just given it (an empty one has no space, either).

    Raises: as `render`; QuestionError when the last turn has no answer."""
    prompt = render(template, [*turns[:-1], replace(turns[-1], answer=None)])
    if turns[-1].answer is None:
        raise QuestionError(f"turn {len(turns)} of {len(turns)} has no answer")
    return f"{prompt} {turns[-1].answer}".rstrip()


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


def without_images(question: str) -> str:
    """The words of a question, without the places of its pictures: what CLIP reads."""
    return question.replace(IMAGE_PLACEHOLDER, " ").strip()


def first_line(prompt: str) -> str:
    """Line 0 of a prompt without the pictures' places: what CLIP reads in the public code.

    With `vicuna_v1` that is the system prompt and `USER:`, so the question is not in it."""
    return prompt.split("\n", 1)[0].replace(IMAGE_PLACEHOLDER, "").strip()


def _with_images(turn: Turn) -> str:
    places = turn.question.count(IMAGE_PLACEHOLDER)
    return f"{IMAGE_PLACEHOLDER}\n" * (turn.images - places) + turn.question
