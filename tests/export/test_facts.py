"""`verify` compares what a bundle copies from its checkpoint to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.facts import compare_facts
from paddle_recomp.bundle import open_bundle, write_checksums
from paddle_recomp.vlm.demo import demo_bundle_folder
from paddle_recomp.vlm.loading import find_checkpoint
from tests.bundle.conftest import change


@pytest.fixture
def demo_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle_folder(), tmp_path / "copy"))


def broken(folder: Path) -> list[str]:
    rows = compare_facts(open_bundle(folder), find_checkpoint("demo"))
    return [row.name for row in rows if not row.passed]


def test_the_packaged_bundle_says_what_is_so() -> None:
    assert broken(demo_bundle_folder()) == []


EDITS: dict[str, Callable[[Any], object]] = {
    "image": lambda content: content["image"].update(pad_colour=[1, 2, 3]),
    "question": lambda content: content["question"].update(start_id=5),
    "prompt": lambda content: content["prompt"]["template"].update(before_answer="YY"),
    "sizes": lambda content: content["sizes"].update(joint_width=7),
    "decoder": lambda content: content["decoder"].update(context=99),
    "stages of recoverable": lambda content: content["compress"]["graphs"]["recoverable"][
        "stages"
    ].reverse(),
}


@pytest.mark.parametrize("section", EDITS)
def test_a_changed_section_is_seen(section: str, demo_copy: Path) -> None:
    change(demo_copy, EDITS[section])
    assert broken(demo_copy) == [section]


def test_a_field_that_the_checkpoint_does_not_give_is_seen(demo_copy: Path) -> None:
    change(demo_copy, lambda content: content["question"].update(begin="A chat. "))
    assert broken(demo_copy) == ["question"]


def test_a_later_field_is_no_difference(demo_copy: Path) -> None:
    change(demo_copy, lambda content: content["prompt"].update(later=1))
    assert broken(demo_copy) == []


def test_a_row_of_the_table_of_words_is_seen(demo_copy: Path) -> None:
    path = demo_copy / "embed_tokens.npy"
    table = np.load(path)
    table[300] *= -1
    np.save(path, table)
    write_checksums(demo_copy)
    assert broken(demo_copy) == ["embed_tokens"]


def test_another_tokenizer_is_seen(demo_copy: Path) -> None:
    path = demo_copy / "llm" / "tokenizer.json"
    path.write_text(path.read_text().replace('"red"', '"rad"', 1))
    write_checksums(demo_copy)
    assert broken(demo_copy) == ["llm/tokenizer.json"]
