"""Chat templates, letter by letter."""

from __future__ import annotations

import json

import jinja2
import pytest

from paddle_recomp.errors import QuestionError
from paddle_recomp.preprocess import (
    TEMPLATES,
    ChatTemplate,
    Prompt,
    Turn,
    check_question,
    clip_text,
    first_line,
    render,
    spoken,
    without_images,
)
from paddle_recomp.vlm.demo import demo_folder

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
VICUNA, LLAVA_HF = TEMPLATES["vicuna_v1"], TEMPLATES["llava_hf"]
FIRST = Turn("What is it?", images=1)
CHAT = [Turn("What is it?", "A cup.", images=1), Turn("And its colour?")]


def test_vicuna_v1() -> None:
    assert render(VICUNA, [FIRST]).text == f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT:"
    assert render(VICUNA, CHAT).text == (
        f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT: A cup.</s>USER: And its colour? ASSISTANT:"
    )


def test_llava_hf() -> None:
    assert render(LLAVA_HF, [FIRST]).text == "USER: <image>\nWhat is it? ASSISTANT:"
    assert render(LLAVA_HF, CHAT).text == (
        "USER: <image>\nWhat is it? ASSISTANT: A cup. USER: And its colour? ASSISTANT:"
    )


def messages(turns: list[Turn]) -> list[dict[str, object]]:
    """As transformers wants them."""
    said: list[dict[str, object]] = []
    for turn in turns:
        content = [{"type": "image"}] * turn.images + [{"type": "text", "text": turn.question}]
        said.append({"role": "user", "content": content})
        if turn.answer is not None:
            answer = [{"type": "text", "text": turn.answer}]
            said.append({"role": "assistant", "content": answer})
    return said


def test_llava_hf_is_the_template_of_the_checkpoints() -> None:
    """The Jinja template that they ship, over a dialogue with pictures in later turns."""
    path = demo_folder() / "llava" / "chat_template.json"
    template = jinja2.Template(json.loads(path.read_text())["chat_template"])
    turns = [Turn("What is it?", "A cup.", images=1), Turn("And?", "It is red.", images=2)]
    for dialogue in (turns[:1], turns, [*turns, Turn("Whose?")]):
        awaited = dialogue[-1].answer is None
        expected = template.render(messages=messages(dialogue), add_generation_prompt=awaited)
        assert render(LLAVA_HF, dialogue).text == expected


@pytest.mark.parametrize("name", ["vicuna_v1", "llava_hf"])
def test_spoken_ends_with_the_last_answer(name: str) -> None:
    template = TEMPLATES[name]
    text = spoken(template, [*CHAT[:1], Turn("Why?", "So.")]).text
    assert text.endswith("Why? ASSISTANT: So.")
    assert render(template, [*CHAT[:1], Turn("Why?", "So."), Turn("Who?")]).text.startswith(text)
    assert spoken(template, [Turn("Why?", "")]).text.endswith("ASSISTANT:")
    with pytest.raises(QuestionError, match="turn 2 of 2 has no answer"):
        spoken(template, CHAT)


def test_several_pictures_and_none() -> None:
    assert render(LLAVA_HF, [Turn("Q", images=2)]).text == "USER: <image>\n<image>\nQ ASSISTANT:"
    assert render(LLAVA_HF, [Turn("Q")]).text == "USER: Q ASSISTANT:"


def test_what_cannot_be_rendered() -> None:
    for template in TEMPLATES.values():
        with pytest.raises(QuestionError, match="no question"):
            render(template, [])
        with pytest.raises(QuestionError, match="turn 1 of 2 has no answer"):
            render(template, [FIRST, FIRST])


@pytest.mark.parametrize("images", [0, 1, 3])
def test_check_question(images: int) -> None:
    assert check_question("  What is it?\n", images) == "What is it?"
    for text in ("", " \n\t ", "<image>" * images):
        with pytest.raises(QuestionError, match="empty"):
            check_question(text, images)
    for places in {1, 2, 3, 4} - {images}:
        with pytest.raises(QuestionError, match=rf": {places}, its pictures: {images};"):
            check_question("Why <image>" * places, images)
    text = "Is this <image> that?" * images + "Yes?"
    assert check_question(text, images) == text


def test_places_of_pictures() -> None:
    asked = [Turn("Is <image> like <image>?", "No.", images=2), Turn("Why?", images=1)]
    text = render(LLAVA_HF, asked).text
    assert text == "USER: Is <image> like <image>? ASSISTANT: No. USER: <image>\nWhy? ASSISTANT:"
    assert without_images("Is <image> like <image>?").split() == ["Is", "like", "?"]


def test_first_line_is_the_system_prompt() -> None:
    assert first_line(render(VICUNA, [FIRST])) == f"{SYSTEM} USER:"
    assert first_line(render(LLAVA_HF, [FIRST])) == "USER:"


def test_a_template_is_its_pieces() -> None:
    """Each piece stands where the class says, and `image` only for pictures without a place."""
    template = ChatTemplate("[", "<q>", "</q>", "<a>", "</a>", "(<image>)", "~")
    turns = [Turn("Is <image> so?", "No.", 1), Turn("Why?", "So.", 2), Turn("Who?")]
    assert render(template, turns).text == (
        "[<q>~Is <image> so?</q><a>No.</a><q>(<image>)(<image>)~Why?</q><a>So.</a><q>~Who?</q>"
    )
    assert spoken(template, turns[:1]).text == "[<q>~Is <image> so?</q><a>No."
    assert "".join(template.texts) == "[<q></q><a></a>(<image>)~"


@pytest.mark.parametrize("images", [0, 1, 2])
def test_only_the_template_and_a_question_have_places(images: int) -> None:
    """A question, if it has one for each of its pictures. Everywhere else `<image>` is text."""
    turns = [Turn("Is <image> it?", "An <image>.", images), Turn("Why?", "<image>", 1)]
    prompt = render(LLAVA_HF, turns)
    assert sum(part.kind == "picture" for part in prompt.parts) == images + 1
    said = [part.text for part in prompt.parts if part.kind == "said"]
    question = ["Is ", " it?"] if images == 1 else ["Is <image> it?"]
    assert said == [*question, "An <image>.", "Why?", "<image>"]
    assert prompt.text.count("<image>") == 4 + (images if images != 1 else 0)
    template = [part.text for part in prompt.parts if part.kind == "template"]
    assert "<image>" not in "".join(template)
    assert len(prompt.pieces()) == images + 2
    assert "<image>".join(piece.text for piece in prompt.pieces()) == prompt.text


def test_white_space_at_the_end_of_a_prompt() -> None:
    place = Prompt.of_template("<image> \n")
    assert (place + Prompt.said(" \t ") + Prompt.said("")).rstrip().text == "<image>"
    assert (Prompt.said("a ") + Prompt.of_template(" b ")).rstrip().text == "a  b"
    assert Prompt.said(" ").rstrip() == Prompt()


def test_clip_reads_the_question_or_the_first_line() -> None:
    asked = "is <image> red?"
    assert clip_text(asked, 1, VICUNA, "question") == "is   red?"
    assert clip_text("is it red?", 1, VICUNA, "prompt_first_line") == f"{SYSTEM} USER:"
    assert clip_text("is it red?", 1, VICUNA, "prompt_first_line", "<s>") == f"<s>{SYSTEM} USER:"
    assert clip_text("is it red?", 1, VICUNA, "question", "<s>") == "is it red?"
    assert (
        clip_text("is it red?", 0, LLAVA_HF, "prompt_first_line") == "USER: is it red? ASSISTANT:"
    )
