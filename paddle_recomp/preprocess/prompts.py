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
    """A question, the answer to it (None while it is awaited) and how many pictures it brings."""

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


def check_question(text: str) -> str:
    """The question without the white space around it.

    Raises: QuestionError when nothing is left, or when it holds the picture's placeholder."""
    question = text.strip()
    if not question:
        raise QuestionError("the question is empty")
    if IMAGE_PLACEHOLDER in question:
        raise QuestionError(
            f"the question holds {IMAGE_PLACEHOLDER!r}, which is reserved for the picture's place"
        )
    return question


def first_line(prompt: str) -> str:
    """Line 0 of a prompt without the picture's placeholder: what CLIP reads in the public code.

    With `vicuna_v1` that is the system prompt and `USER:`, so the question is not in it."""
    return prompt.split("\n", 1)[0].replace(IMAGE_PLACEHOLDER, "").strip()


def _with_images(turn: Turn) -> str:
    return f"{IMAGE_PLACEHOLDER}\n" * turn.images + turn.question
