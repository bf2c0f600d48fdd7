"""Chat templates: from the turns of a conversation to the prompt that the language model
expects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from paddle_recomp.errors import QuestionError

QuestionSource = Literal["question", "prompt_first_line"]
"""What CLIP reads: the question, or line 0 of the decoded prompt."""
IMAGE_PLACEHOLDER = "<image>"
"""Where the visual tokens of a picture go in a prompt."""


@dataclass(frozen=True)
class ChatTemplate:
    """The pieces of text around questions and answers. A conversation is `begin`, then for each
    turn `before_question`, its pictures, `before_words`, the question and `after_question`; and
    where the turn has an answer, `before_answer`, the answer and `after_answer`."""

    begin: str
    before_question: str
    after_question: str
    before_answer: str
    after_answer: str
    image: str = f"{IMAGE_PLACEHOLDER}\n"
    """Stands in front of a question once for each picture that has no place of its own in it."""
    before_words: str = ""
    """Stands in front of every question, behind its pictures."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All of its pieces."""
        values = (getattr(self, item.name) for item in fields(self))
        return tuple(value for value in values if isinstance(value, str))


PartKind = Literal["template", "said", "picture"]


@dataclass(frozen=True)
class Part:
    """A stretch of a prompt. In the `template`'s text a token such as `</s>` is control. In what
    was `said`, by a user or by a model, it is nothing but its letters. A `picture` is the place of
    its visual tokens."""

    text: str
    kind: PartKind


@dataclass(frozen=True)
class Prompt:
    """What a language model reads, with the origin of each stretch."""

    parts: tuple[Part, ...] = ()

    @classmethod
    def of_template(cls, text: str) -> Prompt:
        """A template's text, with a place for a picture at each `<image>`."""
        place = Part(IMAGE_PLACEHOLDER, "picture")
        words = [Part(piece, "template") for piece in text.split(IMAGE_PLACEHOLDER)]
        return cls(tuple(part for word in words for part in (place, word))[1:])

    @classmethod
    def said(cls, text: str) -> Prompt:
        """The words of a user or of a model."""
        return cls((Part(text, "said"),))

    @property
    def text(self) -> str:
        """All of it as one string, with `<image>` for each picture."""
        return "".join(part.text for part in self.parts)

    def __add__(self, other: Prompt) -> Prompt:
        return Prompt((*self.parts, *other.parts))

    def pieces(self) -> list[Prompt]:
        """The stretches between the pictures, one more than there are pictures."""
        found: list[tuple[Part, ...]] = [()]
        for part in self.parts:
            if part.kind == "picture":
                found.append(())
            else:
                found[-1] += (part,)
        return [Prompt(parts) for parts in found]

    def rstrip(self) -> Prompt:
        """Without the white space at its end."""
        parts = list(self.parts)
        while parts:
            last = parts.pop()
            if text := last.text.rstrip():
                return Prompt((*parts, replace(last, text=text)))
        return Prompt()


@dataclass(frozen=True)
class Turn:
    """A question, the answer to it (None while it is awaited) and how many pictures it brings.
    They stand in front of the question, unless it has a place (`<image>`) for each. In every other
    text `<image>` is what it says, seven letters."""

    question: str
    answer: str | None = None
    images: int = 0


def render(template: ChatTemplate, turns: Sequence[Turn]) -> Prompt:
    """The prompt of a conversation; it ends where the next answer begins.

    Raises: QuestionError when there is no turn, or an earlier turn has no answer."""
    if not turns:
        raise QuestionError("there is no question: a conversation needs at least one turn")
    for number, turn in enumerate(turns[:-1], start=1):
        if turn.answer is None:
            raise QuestionError(f"turn {number} of {len(turns)} has no answer")
    prompt = Prompt.of_template(template.begin)
    for turn in turns:
        prompt += Prompt.of_template(template.before_question) + _asked(template, turn)
        prompt += Prompt.of_template(template.after_question)
        if turn.answer is not None:
            prompt += Prompt.of_template(template.before_answer) + Prompt.said(turn.answer)
            prompt += Prompt.of_template(template.after_answer)
    return prompt


def _asked(template: ChatTemplate, turn: Turn) -> Prompt:
    """A question with its pictures."""
    words, place = turn.question.split(IMAGE_PLACEHOLDER), Part(IMAGE_PLACEHOLDER, "picture")
    if len(words) - 1 != turn.images:
        pictures = Prompt.of_template(template.image * turn.images + template.before_words)
        return pictures + Prompt.said(turn.question)
    asked = tuple(part for word in words for part in (place, Part(word, "said")))
    return Prompt.of_template(template.before_words) + Prompt(asked[1:])


def spoken(template: ChatTemplate, turns: Sequence[Turn]) -> Prompt:
    """A conversation up to the last word of its last answer, where the language model stopped. The
    template's text behind the answer is left out, and so is white space at the end, even the space
    in front of an empty answer; but not that of `after_question`, behind which the answer began.

    Raises: as `render`; QuestionError when the last turn has no answer."""
    prompt = render(template, [*turns[:-1], replace(turns[-1], answer=None)])
    answer = turns[-1].answer
    if answer is None:
        raise QuestionError(f"turn {len(turns)} of {len(turns)} has no answer")
    return prompt + (Prompt.of_template(template.before_answer) + Prompt.said(answer)).rstrip()


def check_text(text: str) -> None:
    """Raises: QuestionError for what is no text, or has half a character (a lone surrogate) in it,
    as Python makes of a byte that is no UTF-8."""
    if not isinstance(text, str):
        raise QuestionError(f"the question is of type {type(text).__name__}; expected a text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        place = f"the question's character {error.start + 1}"
        raise QuestionError(f"{place} is half a character, or a byte that is no UTF-8") from None


def check_question(text: str, num_images: int) -> str:
    """The question without the white space around it.

    Raises: QuestionError when it is no text, has no words, or has places for pictures (`<image>`),
    but not one for each of `num_images`."""
    check_text(text)
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
    source: QuestionSource,
    begin: str = "",
) -> str:
    """The text of a question that CLIP reads, from either `question_source`: the words of the
    question, or line 0 of its prompt behind `begin`, the text of the token that begins it, unless
    the template writes that itself."""
    if source == "question":
        return without_images(question)
    line = first_line(render(template, [Turn(question, images=num_images)]))
    return line if line.startswith(begin) else begin + line


def without_images(question: str) -> str:
    """The words of a question, without the places of its pictures."""
    return question.replace(IMAGE_PLACEHOLDER, " ").strip()


def first_line(prompt: Prompt) -> str:
    """Line 0 of a prompt without the pictures' places. CLIP reads it in the public code, which
    decodes the prompt's ids, with the token that begins them (`<s>`), and cuts at line breaks.

    With `vicuna_v1` that is the system prompt and `USER:`, so the question is not in it."""
    text = "".join(piece.text for piece in prompt.pieces())
    return text.split("\n", 1)[0].strip()
