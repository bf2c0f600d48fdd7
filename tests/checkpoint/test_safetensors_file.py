"""Damaged .safetensors files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_recomp.checkpoint.safetensors_file import read_safetensors
from paddle_recomp.checkpoint.tensors import load
from paddle_recomp.errors import CheckpointError
from tests.checkpoint.writers import write_raw_safetensors, write_safetensors
from tests.limited import limited


def entry(begin: int = 0, end: int = 24, dtype: Any = "F32", shape: Any = (2, 3)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_odd_but_good(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    header = {
        "b": entry(4, 8, "F32", []),
        "empty": entry(4, 4, "F32", [0, 5]),
        "a": entry(0, 4, "F16", [2]),
    }
    raw = json.dumps(header).encode()
    raw += b" " * (9 - len(raw) % 8)  # the data then begin at an odd byte
    data = np.array([1.5, -2], np.float16).tobytes() + np.float32(7).tobytes()
    write_raw_safetensors(path, raw, data)
    found = read_safetensors(path)
    assert found["a"].offset % 2 == 1
    np.testing.assert_array_equal(load(found["a"]), np.array([1.5, -2], np.float16))
    assert load(found["b"]).shape == ()
    assert load(found["b"]) == 7
    assert load(found["empty"]).shape == (0, 5)


def test_empty_tensor_at_the_end_of_a_page(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    raw = json.dumps({"empty": entry(0, 0, "F32", [0, 5])}).encode()
    write_raw_safetensors(path, raw.ljust(65536 - 8), b"")  # nothing of the file is left to map
    assert load(read_safetensors(path)["empty"]).shape == (0, 5)


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    bits = np.array([0x3F80, 0xC049, 0x0001, 0x7F80, 0xFF80, 0x8000], np.uint16)
    write_raw_safetensors(path, {"a": entry(0, 12, "BF16", [6])}, bits.tobytes())
    values = load(read_safetensors(path)["a"])
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values[:2], [1.0, -3.140625])
    np.testing.assert_array_equal(values.view(np.uint32), bits.astype(np.uint32) << 16)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(dtype="F13")}, "a has the unknown dtype 'F13'"),
        ({"a": entry(dtype=None)}, "a has the unknown dtype None"),
        ({"a": entry(shape=[2, 4])}, r"a has 24 bytes, but F32 \[2, 4\] needs 32"),
        ({"a": entry(shape=[2, -3])}, "a has no valid shape"),
        ({"a": entry(shape="23")}, "a has no valid shape"),
        ({"a": entry(24, 0)}, "a has -24 bytes"),
        ({"a": {**entry(), "data_offsets": [0]}}, "a has no valid data_offsets"),
        ({"a": {**entry(), "data_offsets": None}}, "a has no valid data_offsets"),
        ({"a": 7}, "a has no description"),
        ({"a": entry(4, 28)}, "a ends at byte"),
        ({"a": entry(), "b": entry(24, 48)}, "b ends at byte"),
        ({"a": entry(), "b": entry(20, 24, shape=[1])}, "b overlaps another tensor"),
        ({"a": entry(0, 4, shape=[1]), "b": entry(8, 24, shape=[4])}, "b follows a gap"),
        ({"a": entry(0, 20, shape=[5])}, "4 bytes belong to no tensor"),
        (b"{not json", "the header is not JSON"),
        (b"\xff\xff", "the header is not JSON"),
        (b"[1]", "the header holds a list; expected a JSON object"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
    ],
)
def test_bad_header(tmp_path: Path, header: Any, message: str) -> None:
    path = tmp_path / "w.safetensors"
    write_raw_safetensors(path, header, bytes(24))
    with pytest.raises(CheckpointError, match=message) as raised:
        read_safetensors(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("length", [10**6, 2**63])
def test_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match=f"claims {length} bytes in a file of 10"):
        read_safetensors(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('json.dumps({"a": entry([1] * 10**6)})', "a has 1000000 axes; the limit is 32 (RECOMP_"),
        ('json.dumps({"a": entry([10**4199])})', "integer of 4200 digits; the limit is 100 ("),
        ('json.dumps({"a": entry([10**99] * 32)})', "a has no valid shape"),
        ('json.dumps({"a": entry([2**63 - 1] * 32)})', "but F32 [9223372036854775807, 9223"),
        ("'{' + ','.join(f'\"{i}\":0' for i in range(1_500_000)) + '}'", "the limit is 16000000 ("),
        (
            "'{' + ','.join(f'\"{i}\":0' for i in range(110_000)) + '}'",
            "has 110000 tensors; the lim",
        ),
        ("'{\"a\":[' + '[],' * 4_000_000 + '1]}'", "it has 8000002 values; the limit is 4000000"),
        ("'{\"a\":' + '[' * 15_000_000", "values; the limit is 4000000 (RECOMP_LIMIT_JSON_VALUES"),
        ("'{\"' + 'a' * 15_000_000 + '\":1}'", "aaa… has no description"),
        ('json.dumps({"a": {"dtype": "x" * 10**7}})', "has the unknown dtype 'xxx"),
    ],
    ids=range(10),
)
def test_a_header_that_asks_for_much_is_refused(tmp_path: Path, header: str, message: str) -> None:
    code = f"""
import json
from pathlib import Path
from paddle_recomp.checkpoint.safetensors_file import read_safetensors
def entry(shape):
    return {{"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}
raw = ({header}).encode()
Path("w.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4))
del raw
read_safetensors(Path("w.safetensors"))
"""
    said = limited(code, megabytes=700, folder=tmp_path)
    assert said.startswith("CheckpointError: w.safetensors")
    assert message in said
    assert len(said) < 400


def test_truncated_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"a": np.ones(3, np.float32), "b": np.ones(2, np.float32)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_safetensors(path)


def test_file_gone_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"a": np.ones(3, np.float32)})
    tensor = read_safetensors(path)["a"]
    path.unlink()
    with pytest.raises(CheckpointError, match="a cannot be read"):
        load(tensor)
