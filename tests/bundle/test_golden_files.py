"""Golden cases whose files are broken: one line that names the file."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_recomp.bundle import open_bundle, write_checksums
from paddle_recomp.bundle.golden import CASES, read_golden
from paddle_recomp.commands.main import main
from paddle_recomp.errors import BundleError

from .conftest import change

NAME = "golden/exact.{}.npy"


def header(shape: str, dtype: str = "<i8") -> bytes:
    """A file of NumPy's format with nothing behind its header."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def archive() -> bytes:
    file = BytesIO()
    np.savez(file, a=np.zeros(1))
    return file.getvalue()


BROKEN = {
    "empty": b"",
    "a broken zip": b"PK\x03\x04junk",
    "several arrays": archive(),
    "a huge shape": header("(5000000000,)"),
    "an endless shape": header("(10000000000000000000000,)"),
    "a broken header": b"\x93NUMPY\x01\x00\x08\x00{{{((   ",
    "objects": header("(1,)", "|O"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_array_is_one_line(
    name: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = NAME.format("token_index")
    (copy / file).write_bytes(BROKEN[name])
    write_checksums(copy)
    assert main(["verify", str(copy)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert file in line
    assert len(line) < 500


def with_pictures(ids: Any, count: int) -> Any:
    return np.concatenate([ids[ids != -200], np.full(count, -200)])


WRONG: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "no number": ("token_count", lambda a: a[:0], r"int64 \[0\]; expected int64 \[1\]"),
    "a scalar": ("token_count", lambda a: np.array(3), r"int64 \[\]; expected int64 \[B\]"),
    "too many": ("token_count", lambda a: a + 1000, "expected 1 to"),
    "a date": ("token_count", lambda a: a.astype("datetime64[s]"), "datetime64"),
    "NaN": ("visual_embeds", lambda a: a * np.float32("nan"), "NaN or infinity"),
    "flat": ("visual_embeds", lambda a: a[0], r"expected float32 \[B, M, D\]"),
    "narrow": ("visual_embeds", lambda a: a[:, :, :-1], r"expected float32 \[1, \d+, 16\]"),
    "wide pixels": ("pixel_values", lambda a: a.astype(np.float64), "float64"),
    "small pixels": ("pixel_values", lambda a: a[..., :-7], r"expected float32 \[1, 3, 42, 42\]"),
    "half features": ("features", lambda a: a.astype(np.float16), "float16"),
    "few features": ("features", lambda a: a[:, :-1], r"expected float32 \[1, 36, \d+\]"),
    "small ids": ("question_ids", lambda a: a.astype(np.int32), "int32"),
    "a large id": ("prompt_ids", lambda a: np.where(a > 0, a + 704, a), "expected 0 to 703"),
    "no picture": ("prompt_ids", lambda a: with_pictures(a, 0), r"has 0 pictures.*expected 1"),
    "two pictures": ("prompt_ids", lambda a: with_pictures(a, 2), r"has 2 pictures.*expected 1"),
    "structures": ("token_index", lambda a: a.view([("a", "<i8")]), r"expected int64"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_array_of_another_kind_is_refused(name: str, copy: Path) -> None:
    array, edit, says = WRONG[name]
    (case,) = (one for one in read_cases(copy) if one["name"] == "exact")
    path = copy / case["arrays"][array]
    np.save(path, edit(np.load(path)))
    write_checksums(copy)
    with pytest.raises(BundleError, match=says) as raised:
        read_golden(open_bundle(copy))
    assert path.name in str(raised.value)


def read_cases(folder: Path) -> list[Any]:
    found: list[Any] = []
    change(folder, lambda content: found.extend(content["cases"]), CASES)
    return found


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda c: c["cases"][1].pop("answer"), 'case "capped" has no answer'),
        (lambda c: c["cases"][1]["arrays"].pop("logits"), 'case "capped" has no logits'),
        (lambda c: c["cases"][1].update(token_bounds=[1, 10**30]), "at most 65536"),
        (lambda c: c["cases"][1].update(question="<image><image>"), "has 2 <image> in its quest"),
        (lambda c: c["cases"].clear(), "cases has 0 entries; expected at least 1"),
    ],
)
def test_a_case_that_lacks_something_is_refused(
    edit: Callable[[Any], object], says: str, copy: Path
) -> None:
    change(copy, edit, CASES)
    with pytest.raises(BundleError, match=says):
        read_golden(open_bundle(copy))


def test_an_array_that_nobody_knows_is_passed_over(copy: Path) -> None:
    (copy / "golden" / "later.npy").write_bytes(b"?")
    change(copy, lambda c: c["cases"][0]["arrays"].update(later="golden/later.npy"), CASES)
    assert "later" not in read_golden(open_bundle(copy)).cases[0].arrays


def test_the_ids_of_an_answer_are_compared(int8_copy: Path) -> None:
    """Another end of the answer leaves its text as it is where the last id has none."""
    change(int8_copy, lambda c: c["prompt"].update(eos_token_ids=[700]))
    assert main(["verify", str(int8_copy), "--quiet"]) == 1


def test_a_name_is_printed_as_it_is(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(copy, lambda c: c["cases"][0].update(name="[/]"), CASES)
    change(copy, lambda c: c["cases"][1].update(name="[red]x\x1b[2J"), CASES)
    assert main(["verify", str(copy)]) == 0
    out = capsys.readouterr().out
    assert "[/]" in out
    assert "[red]x" in out
    assert "\x1b" not in out
