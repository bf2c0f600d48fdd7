"""tokenizer.json files that make the library behind them panic or fill the memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paddle_recomp.errors import CheckpointError
from paddle_recomp.preprocess import ClipTokenizer, ids_of, load_tokenizer
from paddle_recomp.preprocess.sentencepiece import load
from paddle_recomp.vlm.demo import demo_bundle_folder
from tests.limited import limited

GOOD = demo_bundle_folder() / "clip" / "tokenizer.json"
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {},
}
SEQUENCE = {"type": "Sequence", "processors": [TEMPLATE]}


def split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def write(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads(GOOD.read_text(encoding="utf-8"))
    edit(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "tokenizer.json"


def precompiled(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(post_processor=TEMPLATE), "writes the special token <s>, which its"),
        (lambda c: c.update(post_processor=SEQUENCE), "writes the special token <s>, which its"),
        (lambda c: c.update(pre_tokenizer=split("(")), "Oniguruma error"),
        (lambda c: c["model"].update(vocab=["a"]), "expected a map"),
        (precompiled, "makes its library fail: Precompiled"),
        (
            lambda c: c["model"]["vocab"].update(far=2**31),
            "leaves out 2147482928 ids; the limit is",
        ),
    ],
    ids=range(6),
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = write(tmp_path, edit)
    with pytest.raises(CheckpointError, match="is not a usable tokenizer: ") as raised:
        load_tokenizer(path)
    assert str(raised.value).startswith(str(path))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_panic_while_a_text_is_encoded(tmp_path: Path) -> None:
    write(tmp_path, lambda c: c.update(pre_tokenizer=split("(a+)+$")))
    tokenizer = ClipTokenizer.from_folder(tmp_path)
    said = "the tokenizer's file makes its library fail: Onig: Regex search error: retry-limit"
    with pytest.raises(CheckpointError, match=said):
        tokenizer.encode(["a" * 40 + "b"], 77)
    with pytest.raises(CheckpointError, match=said):
        ids_of(load_tokenizer(tmp_path / "tokenizer.json"), "a" * 40 + "b")


def test_an_empty_pattern_is_harmless(tmp_path: Path) -> None:
    write(tmp_path, lambda c: c.update(pre_tokenizer=split("")))
    ClipTokenizer.from_folder(tmp_path).encode(["a cat"], 77)


def test_a_huge_file_and_a_pipe_are_not_read(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(3_000_000_000)  # It takes no room on the disk.
    with pytest.raises(CheckpointError, match="has 3000000000 bytes; the limit is 64000000"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="has 3000000000 bytes; the limit is 16000000"):
        load(tmp_path / "tokenizer.model")
    with pytest.raises(CheckpointError, match="it is not a regular file"):
        load_tokenizer(Path("/dev/zero"))


def test_a_piece_of_many_letters(tmp_path: Path) -> None:
    """Every way to cut a piece in two is tried."""
    code = """
from pathlib import Path
from paddle_recomp.preprocess.sentencepiece import load
piece = b"\\x0a\\x80\\x80\\x80\\x05" + b"a" * (5 << 21)
Path("m").write_bytes(b"\\x0a" + bytes([0x85, 0x80, 0x80, 0x05]) + piece)
load(Path("m"))
"""
    said = limited(code, folder=tmp_path)
    assert "a piece has 10485760 letters; the limit is 1000 (RECOMP_LIMIT_PIECE_LETTERS)" in said
