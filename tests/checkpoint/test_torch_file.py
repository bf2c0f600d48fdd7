"""Files of torch.save: strange but good ones, damaged ones and hostile ones."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_recomp.checkpoint.tensors import load
from paddle_recomp.checkpoint.torch_file import read_torch
from paddle_recomp.errors import CheckpointError
from tests.checkpoint.writers import (
    pickle_call,
    pickle_dict,
    pickle_global,
    pickle_int,
    pickle_parameter,
    pickle_storage,
    pickle_tensor,
    pickle_text,
    pickle_tuple,
    write_torch,
    write_torch_zip,
)
from tests.limited import limited

SIX = np.arange(6, dtype=np.float32)
STORAGE = pickle_storage("0", "float32", 6)
GOOD = pickle_tensor(STORAGE, 0, (6,), (1,))


def write(path: Path, **items: bytes) -> Path:
    write_torch_zip(path, pickle_dict(items), {"0": SIX.tobytes()})
    return path


def test_views_of_one_storage(tmp_path: Path) -> None:
    path = write(
        tmp_path / "w.bin",
        plain=pickle_tensor(STORAGE, 0, (2, 3), (3, 1)),
        transposed=pickle_parameter(pickle_tensor(STORAGE, 0, (3, 2), (1, 3))),
        tail=pickle_tensor(STORAGE, 4, (2,), (1,)),
        gaps=pickle_tensor(STORAGE, 1, (3,), (2,)),
        scalar=pickle_tensor(STORAGE, 5, (), ()),
        empty=pickle_tensor(STORAGE, 6, (0, 4), (4, 1)),
        repeated=pickle_tensor(STORAGE, 2, (2, 2), (0, 1)),
    )
    found = {key: load(tensor) for key, tensor in read_torch(path).items()}
    np.testing.assert_array_equal(found["plain"], SIX.reshape(2, 3))
    np.testing.assert_array_equal(found["transposed"], SIX.reshape(2, 3).T)
    np.testing.assert_array_equal(found["tail"], [4, 5])
    np.testing.assert_array_equal(found["gaps"], [1, 3, 5])
    np.testing.assert_array_equal(found["scalar"], 5)
    assert found["empty"].shape == (0, 4)
    np.testing.assert_array_equal(found["repeated"], [[2, 3], [2, 3]])


def test_transposed_bfloat16(tmp_path: Path) -> None:
    storage = pickle_storage("0", "bfloat16", 6)
    bits = (SIX.view(np.uint32) >> 16).astype(np.uint16)
    view = pickle_tensor(storage, 0, (3, 2), (1, 3))
    write_torch_zip(tmp_path / "w.bin", pickle_dict({"a": view}), {"0": bits.tobytes()})
    values = load(read_torch(tmp_path / "w.bin")["a"])
    np.testing.assert_array_equal(values, SIX.reshape(2, 3).T)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (0, (3, 2), (3, 1)),
        (7, (0,), (1,)),
        (0, (2,), (10**15,)),
        (6, (), ()),
    ],
)
def test_view_outside_its_storage(
    tmp_path: Path, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    path = write(tmp_path / "w.bin", a=pickle_tensor(STORAGE, offset, shape, strides))
    with pytest.raises(CheckpointError, match="a reaches outside storage 0 of 6 items") as raised:
        read_torch(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "tensor",
    [
        pickle_tensor(STORAGE, -1, (1,), (1,)),
        pickle_tensor(STORAGE, 0, (-1,), (1,)),
        pickle_tensor(STORAGE, 5, (6,), (-1,)),
        pickle_tensor(STORAGE, 0, (2, 3), (1,)),
        pickle_tensor(pickle_text("0"), 0, (1,), (1,)),
    ],
)
def test_senseless_view(tmp_path: Path, tensor: bytes) -> None:
    with pytest.raises(CheckpointError, match="describes no valid tensor"):
        read_torch(write(tmp_path / "w.bin", a=tensor))


@pytest.mark.parametrize(
    "storage",
    [
        pickle_storage("0", "float32", -6),
        pickle_tuple(pickle_text("storage"), pickle_text("0")) + b"Q",
        pickle_text("0") + b"Q",
    ],
)
def test_senseless_storage(tmp_path: Path, storage: bytes) -> None:
    path = write(tmp_path / "w.bin", a=pickle_tensor(storage, 0, (1,), (1,)))
    with pytest.raises(CheckpointError, match="describes no valid storage"):
        read_torch(path)


def test_storage_of_another_length(tmp_path: Path) -> None:
    storage = pickle_storage("0", "float32", 7)
    path = write(tmp_path / "w.bin", a=pickle_tensor(storage, 0, (6,), (1,)))
    with pytest.raises(CheckpointError, match=r"has 24 bytes, but 7 items of float32 need 28"):
        read_torch(path)


def test_storage_that_is_not_there(tmp_path: Path) -> None:
    storage = pickle_storage("9", "float32", 6)
    path = write(tmp_path / "w.bin", a=pickle_tensor(storage, 0, (6,), (1,)))
    with pytest.raises(CheckpointError, match="a lies in storage 9, which is not there"):
        read_torch(path)


class RunsOnLoad:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_hostile_pickle_does_not_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "executed"
    code = f"open({str(marker)!r}, 'w').close()"
    description = pickle.dumps({"a": RunsOnLoad(exec, code)}, protocol)
    pickle.loads(description)
    assert marker.exists(), "the attack itself must work, or this test shows nothing"
    marker.unlink()
    write_torch_zip(tmp_path / "w.bin", description, {})
    # torch.save cannot write protocol 0, whose first step is refused already.
    refused = r"names \w+\.exec, .*refused" if protocol else "has the step DICT, .*not write"
    message = rf"w\.bin: its pickle {refused}"
    with pytest.raises(CheckpointError, match=message):
        read_torch(tmp_path / "w.bin")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("__builtin__", "eval"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections", "namedtuple"),
        ("torch", "load"),
        ("torch", "_utils._rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("paddle_recomp.checkpoint.torch_file", "_view"),
    ],
)
def test_refused_names(tmp_path: Path, module: str, name: str) -> None:
    path = write(tmp_path / "w.bin", a=GOOD, b=pickle_global(module, name))
    with pytest.raises(CheckpointError, match=f"names {module}.{name}, which no tensor needs"):
        read_torch(path)


def test_refused_name_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hostile_module.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path / "w.bin", a=pickle_call("hostile_module", "run"))
    with pytest.raises(CheckpointError, match=r"hostile_module\.run"):
        read_torch(path)
    assert not (tmp_path / "mark").exists()


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        return value.pid if isinstance(value, _Stored) else None


class _Stored:
    def __init__(self, pid: tuple[object, ...]) -> None:
        self.pid = pid


class _Tensor:
    def __init__(self, rebuild: object, *arguments: object) -> None:
        self.call = (rebuild, arguments)

    def __reduce__(self) -> tuple[object, object]:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_step_of_pythons_own_pickler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    """torch.save uses it, in protocol 2 unless it is told otherwise."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for module, name in ((torch, "FloatStorage"), (utils, "_rebuild_tensor_v2")):
        made = type(name, (), {"__module__": module.__name__, "__qualname__": name})
        setattr(module, name, made)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    weights: Any = OrderedDict()
    for number in range(2500):
        pid = ("storage", torch.FloatStorage, "0", "cpu", 70_000)
        shape = ((), (3,), (2, 3), (1, 2, 3), (1, 1, 2, 3))[number % 5]
        strides = ((), (1,), (3, 1), (6, 3, 1), (70_000, 6, 3, 1))[number % 5]
        hooks: Any = OrderedDict()
        weights[f"layer.{number}"] = _Tensor(
            utils._rebuild_tensor_v2, _Stored(pid), number, shape, strides, False, hooks
        )
    weights._metadata = OrderedDict(version=2**40, ratio=0.5, none=None, some=[1, -2])
    buffer = io.BytesIO()
    _Pickler(buffer, protocol).dump(weights)
    data = np.arange(70_000, dtype=np.float32)
    write_torch_zip(tmp_path / "w.bin", buffer.getvalue(), {"0": data.tobytes()})
    found = read_torch(tmp_path / "w.bin")
    assert list(found) == list(weights)
    np.testing.assert_array_equal(load(found["layer.2498"]), data[2498:2504].reshape(1, 2, 3))


def _tuples(deep: int) -> bytes:
    """A tuple of two of a tuple of two …: as a key it would be hashed 2**deep times."""
    return b")" + b"".join(b"q\x00h\x00\x86" for _ in range(deep))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (b"\x80\x02}" + _tuples(200) + b"Ns.", "has a tuple as a key; expected a text"),
        (b"\x80\x02}(" + _tuples(200) + b"Nu.", "has a tuple as a key; expected a text"),
        (
            b"\x80\x02(" + pickle_text("storage") + _tuples(200) + b"NNNtQ.",
            "describes no valid storage",
        ),
        (b"\x80\x02}r\xff\xff\xff\x0f.", ""),
        (b"\x80\x02" + b"}" * 9_000_000, "the limit is 10000 (RECOMP_LIMIT_PICKLE_STACK)"),
        (b"\x80\x02]" + b"}a" * 5_000_000, "the limit is 1000000 (RECOMP_LIMIT_PICKLE_STEPS)"),
        (b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".", "has an integer of 255 bytes; expected 8"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f", "has the step LONG4, which torch.save does not"),
        (b"\x80\x02X\xff\xff\xff\x7f", "its pickle is cut off"),
        (b"\x80\x05\x8d" + b"\xff" * 8, "its pickle is cut off"),
        (b"}" * 16_000_001, "data.pkl has 16000001 bytes; the limit is 16000000 ("),
    ],
    ids=range(11),
)
def test_a_pickle_that_asks_for_much_is_refused(
    tmp_path: Path, description: bytes, message: str
) -> None:
    write_torch_zip(tmp_path / "w.bin", description, {})
    code = """
from pathlib import Path
from typing import Any
from paddle_recomp.checkpoint.torch_file import read_torch
print(read_torch(Path("w.bin")))
"""
    said = limited(code, megabytes=600, folder=tmp_path)
    assert said.startswith("CheckpointError: w.bin: " if message else "{}")
    assert message in said
    assert len(said) < 300


def test_a_tensor_has_each_of_its_items_once(tmp_path: Path) -> None:
    """Steps of zero would make a tensor of any size out of four bytes."""
    path = write(tmp_path / "w.bin", a=pickle_tensor(STORAGE, 0, (10**9, 10**9), (0, 0)))
    with pytest.raises(CheckpointError, match=r"a has 10{18} items in a storage of 6; expected"):
        read_torch(path)


def test_axes_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "w.bin", a=pickle_tensor(STORAGE, 0, (1,) * 33, (1,) * 33))
    with pytest.raises(CheckpointError, match=r"a tensor of 33 axes; the limit is 32 \(RECOMP_"):
        read_torch(path)


def test_tensors_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "w.bin", a=GOOD, b=GOOD)
    monkeypatch.setenv("RECOMP_LIMIT_TENSORS", "1")
    with pytest.raises(CheckpointError, match=r"w\.bin has 2 tensors; the limit is 1 \(RECOMP_"):
        read_torch(path)


def test_a_directory_that_would_fill_the_memory(tmp_path: Path) -> None:
    """A zip archive of a million entries, none of which takes any room."""
    entry = b"PK\x01\x02" + bytes(42)
    end = b"PK\x05\x06" + bytes(4) + struct.pack("<HHLLH", 9, 9, 46 * 10**6, 4, 0)
    (tmp_path / "w.bin").write_bytes(b"PK\x03\x04" + entry * 10**6 + end)
    code = """
from pathlib import Path
from typing import Any
from paddle_recomp.checkpoint.torch_file import read_torch
read_torch(Path("w.bin"))
"""
    said = limited(code, folder=tmp_path)
    assert "w.bin: a part of it has 46000000 bytes; the limit is 16000000 (RECOMP_LIMIT" in said


@pytest.mark.parametrize(
    "items",
    [
        {"\x1b[2J" + "a" * 10**6: pickle_int(1)},
        {"a" * 10**6: pickle_tensor(pickle_storage("b" * 10**6, "float32", 6), 0, (6,), (1,))},
        {"a": pickle_global("c" * 10**6, "d" * 10**6)},
        {"a" * 10**6: pickle_tensor(STORAGE, 0, (7,), (1,))},
    ],
    ids=range(4),
)
def test_names_in_messages_are_short(tmp_path: Path, items: dict[str, bytes]) -> None:
    path = write(tmp_path / "w.bin", **items)
    with pytest.raises(CheckpointError) as raised:
        read_torch(path)
    assert len(str(raised.value)) < 300 + len(str(path))
    assert str(raised.value).isprintable()


def test_disguised_dictionary(tmp_path: Path) -> None:
    """A pickle may put attributes on its OrderedDict, such as an `items` of its own."""
    state = b"}" + pickle_text("items") + pickle_global("collections", "OrderedDict") + b"s"
    description = pickle_dict({"a": GOOD}).removesuffix(b".") + state + b"b."
    write_torch_zip(tmp_path / "w.bin", description, {"0": SIX.tobytes()})
    assert list(read_torch(tmp_path / "w.bin")) == ["a"]


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (b"\x80\x02" + pickle_int(7) + b".", "holds a int; expected a dict"),
        (pickle_dict({"epoch": pickle_int(7)}), "epoch is a int, not a tensor"),
        (pickle_dict({"model": pickle_call("collections", "OrderedDict")}), "model is a dict, not"),
        (b"\x80\x02}" + pickle_int(7) + GOOD + b"s.", "has a int as a key; expected a text"),
        (b"\x80\x02(", "its pickle is cut off"),
        (b"", "its pickle is cut off"),
        (b"\x80\xff.", "takes more values than it has"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "takes more values than it has"),
    ],
)
def test_other_content(tmp_path: Path, description: bytes, message: str) -> None:
    write_torch_zip(tmp_path / "w.bin", description, {"0": SIX.tobytes()})
    with pytest.raises(CheckpointError, match=message):
        read_torch(tmp_path / "w.bin")


def test_legacy_formats(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
    with pytest.raises(CheckpointError, match=r"not in the zip format of torch.save"):
        read_torch(path)
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "pickle")
    with pytest.raises(CheckpointError, match=r"not in the zip format of torch.save"):
        read_torch(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"not in the zip format of torch.save"):
        read_torch(path)


def test_compressed_storage(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    write_torch_zip(path, pickle_dict({"a": GOOD}), {"0": SIX.tobytes()}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="w/data/0 is compressed"):
        read_torch(path)


def test_big_endian(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    write_torch_zip(path, pickle_dict({"a": GOOD}), {"0": SIX.tobytes()}, byteorder=b"big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_torch(path)


def test_zip_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"holds 0 files data\.pkl"):
        read_torch(path)


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    write_torch(path, {"a": np.ones(3, np.float32)})
    whole = path.read_bytes()
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_torch(path)


def test_damaged_bytes_are_harmless(tmp_path: Path) -> None:
    """A damaged file gives an error of ours or tensors that can be read, never anything else."""
    path = tmp_path / "w.bin"
    write_torch(path, {"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float32)})
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            for tensor in read_torch(path).values():
                load(tensor).sum()
        except CheckpointError:
            refused += 1
    assert refused > len(whole) // 10
