"""Chat templates, letter by letter."""

from __future__ import annotations

import pytest

from paddle_recomp.errors import ConfigError, QuestionError
from paddle_recomp.preprocess import TEMPLATES, Turn, check_question, first_line, render

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
FIRST = Turn("What is it?", images=1)
CHAT = [Turn("What is it?", "A cup.", images=1), Turn("And its colour?")]


def test_vicuna_v1() -> None:
    assert render("vicuna_v1", [FIRST]) == f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT:"
    assert render("vicuna_v1", CHAT) == (
        f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT: A cup.</s>USER: And its colour? ASSISTANT:"
    )


def test_llava_hf() -> None:
    assert render("llava_hf", [FIRST]) == "USER: <image>\nWhat is it? ASSISTANT:"
    assert render("llava_hf", CHAT) == (
        "USER: <image>\nWhat is it? ASSISTANT: A cup. USER: And its colour? ASSISTANT:"
    )


def test_several_pictures_and_none() -> None:
    assert render("llava_hf", [Turn("Q", images=2)]) == "USER: <image>\n<image>\nQ ASSISTANT:"
    assert render("llava_hf", [Turn("Q")]) == "USER: Q ASSISTANT:"


def test_what_cannot_be_rendered() -> None:
    with pytest.raises(ConfigError, match="known: vicuna_v1, llava_hf"):
        render("chatml", [FIRST])
    for template in TEMPLATES:
        with pytest.raises(QuestionError, match="no question"):
            render(template, [])
        with pytest.raises(QuestionError, match="turn 1 of 2 has no answer"):
            render(template, [FIRST, FIRST])


def test_check_question() -> None:
    assert check_question("  What is it?\n") == "What is it?"
    for text in ("", " \n\t "):
        with pytest.raises(QuestionError, match="empty"):
            check_question(text)
    with pytest.raises(QuestionError, match="'<image>', which is reserved"):
        check_question("What is in <image>?")


def test_first_line_is_the_system_prompt() -> None:
    assert first_line(render("vicuna_v1", [FIRST])) == f"{SYSTEM} USER:"
    assert first_line(render("llava_hf", [FIRST])) == "USER:"
