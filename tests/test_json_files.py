"""The one reader of JSON objects: what it refuses, and as which error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paddle_recomp.errors import (
    BundleError,
    BundleNotFoundError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
)
from paddle_recomp.json_files import number_of, one_line, read_json, shown


def test_an_object_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2.5, null, "ä"], "b": {"a": false}}', encoding="utf-8")
    assert read_json(path) == {"a": [1, 2.5, None, "ä"], "b": {"a": False}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "holds a list; expected a JSON object"),
        (b'"text"', 'holds "text"; expected a JSON object'),
        (b"null", "holds null; expected a JSON object"),
        (b'{"a": 1, "a": 2}', "key 'a' appears twice"),
        (b'{"b": {"a": 1, "a": 1}}', "key 'a' appears twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": [-Infinity]}', "-Infinity is no JSON number"),
        (b'\xef\xbb\xbf{"a": 1}', "is not JSON: .*BOM"),
        ('{"a": 1}'.encode("utf-16"), "is not JSON"),
        ('{"a": 1}'.encode("utf-16-le"), "is not JSON"),
        ('{"a": 1}'.encode("utf-32"), "is not JSON"),
        (b'{"a": "\xed\xa0\x80"}', "is not JSON"),
        (b'{"a": ["\\ud800"]}', r'"\\ud800" has half a character'),
        (b'{"\\uDFFF": 1}', "half a character"),
        (b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}", "nested more than 100 deep"),
        (b'{"a": ' + b"[" * 970 + b"]" * 970 + b"}", "is not JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON"),
        (b'{"a": ' + b"1" * 101 + b"}", "an integer of 101 digits; the limit is 100"),
        (b'{"a": [-' + b"1" * 4000 + b"]}", "an integer of 4000 digits; the limit is 100"),
        (b'{"a": 1e400}', "a number above 1.8e308"),
        (b'{"a": [' + b"0," * 4_000_000 + b"0]}", "has 4000002 values; the limit is 4000000"),
    ],
)
def test_what_is_no_object_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for kind in (CheckpointError, BundleError):
        with pytest.raises(kind, match=message) as raised:
            read_json(path, kind)
        assert str(raised.value).startswith(str(path))
        assert "\n" not in str(raised.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    for path in (tmp_path / "a.json", tmp_path / "a.json" / "b"):
        with pytest.raises(CheckpointNotFoundError, match="there is no"):
            read_json(path)
        with pytest.raises(BundleNotFoundError, match="there is no"):
            read_json(path, BundleError, BundleNotFoundError)
    with pytest.raises(BundleError, match="cannot be read"):
        read_json(tmp_path, BundleError, BundleNotFoundError)


def test_a_pair_of_surrogates_is_one_character(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": "\\ud83d\\ude00"}')
    assert read_json(path) == {"a": "\U0001f600"}


def test_a_pipe_and_a_huge_file_are_refused_unread(tmp_path: Path) -> None:
    pipe, huge = tmp_path / "pipe.json", tmp_path / "huge.json"
    os.mkfifo(pipe)
    with huge.open("wb") as file:
        file.truncate(3_000_000_000)  # It takes no room on the disk.
    with pytest.raises(BundleError, match="not a regular file"):
        read_json(pipe, BundleError)
    with pytest.raises(
        BundleError,
        match=r"has 3000000000 bytes; the limit is 64000000 \(RECOMP_LIMIT_FILE_BYTES\)",
    ):
        read_json(huge, BundleError)


def test_nothing_in_a_message_moves_the_cursor() -> None:
    assert shown("\x1b[2J\x9b\u202e") == '"\\u001b[2J\\x9b\\u202e"'
    assert one_line("a\n  b\x1b" + "c" * 500) == "a b\\x1b" + "c" * 56 + "…"


def test_a_value_in_a_message_is_short() -> None:
    assert shown("x" * 500) == '"' + "x" * 59 + "…"
    assert shown("a\nb") == '"a\\nb"'
    assert (shown({"a": 1}), shown([1]), shown(None), shown(True)) == (
        "an object",
        "a list",
        "null",
        "true",
    )


def test_a_file_that_lies_about_its_size_is_not_read_to_its_end() -> None:
    for path in ("/proc/self/mem", "/proc/self/maps", "/dev/zero", "/dev/null"):
        with pytest.raises(BundleError, match=f"^{path} cannot be read: "):
            read_json(Path(path), BundleError)


def test_a_bound_is_set_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": [[]]}')
    monkeypatch.setenv("RECOMP_LIMIT_JSON_DEPTH", "1")
    with pytest.raises(CheckpointError, match=r"the limit is 1 \(RECOMP_LIMIT_JSON_DEPTH\)"):
        read_json(path)
    monkeypatch.setenv("RECOMP_LIMIT_JSON_DEPTH", "2")
    assert read_json(path) == {"a": [[]]}
    for value in ("", "0", "-1", "1e3", "٣", "9" * 5000):
        monkeypatch.setenv("RECOMP_LIMIT_JSON_DEPTH", value)
        with pytest.raises(ConfigError, match=r"RECOMP_LIMIT_JSON_DEPTH is .*expected a positive"):
            read_json(path)


@pytest.mark.parametrize(
    "value", [None, "1", True, [1], float("nan"), float("inf"), 10**400, -(10**309)]
)
def test_a_number_is_finite(value: object) -> None:
    with pytest.raises(CheckpointError, match=r"a\.json: key is .*; expected a number"):
        number_of(Path("a.json"), {"key": value}, "key")
