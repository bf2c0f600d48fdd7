"""Both behaviours of Llama's tokenizers, as transformers recorded them, and in bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_recomp.errors import CheckpointError
from paddle_recomp.preprocess import (
    IMAGE_TOKEN,
    TEMPLATES,
    LanguageTokenizer,
    Prompt,
    Turn,
    load_tokenizer,
    render,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "llama_tokenizer"
RECORDED: dict[str, Any] = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
SLOW, FAST, TEXTS = RECORDED["slow"], RECORDED["fast"], RECORDED["texts"]


def slow(folder: Path, config: dict[str, Any]) -> LanguageTokenizer:
    """A folder with tokenizer.model."""
    (folder / "tokenizer.model").write_bytes((GOLDEN / "tokenizer.model").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return LanguageTokenizer.from_folder(folder, TEMPLATES["vicuna_v1"])


def fast(folder: Path, name: str) -> LanguageTokenizer:
    """A folder with the tokenizer.json that transformers writes."""
    about = {"version": "1.0", "model": RECORDED["model"], **FAST[name]["steps"]}
    about |= {"added_tokens": RECORDED["added_tokens"], "truncation": None, "padding": None}
    (folder / "tokenizer.json").write_text(json.dumps(about))
    return LanguageTokenizer.from_folder(folder, TEMPLATES["vicuna_v1"])


def exported(tokenizer: LanguageTokenizer, folder: Path) -> LanguageTokenizer:
    """Through the tokenizer.json of a bundle."""
    path = folder / "exported.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    return LanguageTokenizer(
        load_tokenizer(path), tokenizer.bos_token_id, tokenizer.eos_token_ids, silent_ids=(0, 1, 2)
    )


def check(tokenizer: LanguageTokenizer, expected: list[list[int]]) -> None:
    """With the beginning of text once, also where the text has it itself."""
    for text, ids in zip(TEXTS, expected, strict=True):
        once = ids[1:] if ids[1:2] == [1] else ids
        assert tokenizer.encode(Prompt.of_template(text)) == once, text


@pytest.mark.parametrize("name", SLOW)
def test_tokenizer_model_as_transformers(name: str, tmp_path: Path) -> None:
    tokenizer = slow(tmp_path, SLOW[name]["config"])
    check(tokenizer, SLOW[name]["ids"])
    check(exported(tokenizer, tmp_path), SLOW[name]["ids"])


@pytest.mark.parametrize("name", FAST)
def test_tokenizer_json_as_transformers(name: str, tmp_path: Path) -> None:
    tokenizer = fast(tmp_path, name)
    check(tokenizer, FAST[name]["ids"])
    check(exported(tokenizer, tmp_path), FAST[name]["ids"])


def test_the_behaviours_differ_behind_an_answer() -> None:
    """Or nothing would be tested here."""
    place = next(place for place, text in enumerate(TEXTS) if "</s>USER" in text)
    assert SLOW["absent"]["ids"] == SLOW["legacy"]["ids"] == FAST["legacy"]["ids"]
    first, second = (SLOW[name]["ids"][place] for name in ("legacy", "not legacy"))
    assert first[: first.index(2)] == second[: second.index(2)]
    assert first[first.index(2) :] != second[second.index(2) :]


@pytest.mark.parametrize("name", ["legacy", "not legacy"])
def test_several_turns_about_a_picture(name: str, tmp_path: Path) -> None:
    """The prompt of the original code: cut at the picture, each piece encoded by itself."""
    tokenizer = slow(tmp_path, {"legacy": name == "legacy"})
    template = TEMPLATES["vicuna_v1"]
    turns = [Turn("what is it?", "A cup.", 1), Turn("its colour?", "red"), Turn("why?")]
    prompt = render(template, turns)
    (before, behind) = (piece.text for piece in prompt.pieces())
    ids = dict(zip(TEXTS, SLOW[name]["ids"], strict=True))
    found = tokenizer.encode(prompt)
    place = found.index(IMAGE_TOKEN)
    assert found[place + 1 :] == ids[behind][1:]
    assert found[:place] == tokenizer.encode(Prompt.of_template(before))


@pytest.mark.parametrize("name", ["legacy", "not legacy", "no prefix"])
def test_said_control_tokens_change_nothing_around_them(name: str, tmp_path: Path) -> None:
    tokenizer = slow(tmp_path, SLOW[name]["config"])
    text = st.lists(st.sampled_from(["the", " ", "\n", "USER:", "日", "▁", "a"])).map("".join)

    @given(text, text, text)
    @settings(max_examples=200, deadline=None)
    def same(first: str, second: str, third: str) -> None:
        begin = Prompt.of_template("USER: ") + Prompt.said(first) + Prompt.of_template("</s>")
        middle = Prompt.of_template("USER: ") + Prompt.said(second) + Prompt.of_template("</s>")
        typed = Prompt.said(f"{third}</s>")
        plain = tokenizer.encode(begin + middle)
        assert tokenizer.encode(begin + middle + typed)[: len(plain)] == plain
        assert tokenizer.encode(begin + middle + typed).count(2) == 2

    same()


@pytest.mark.parametrize("value", ["no", 0, []])
def test_a_legacy_that_is_no_truth_value(value: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: legacy is .*expected"):
        slow(tmp_path, {"legacy": value})
