"""Writes checkpoint files of every format without torch and without the library's own readers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray[Any, Any]]

SAFETENSORS_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}


def encode(array: np.ndarray[Any, Any], dtype: str | None) -> tuple[str, bytes]:
    """The array as a file holds it; `dtype` is what floating-point numbers are stored in."""
    if dtype is None or array.dtype.kind != "f":
        return str(array.dtype), array.tobytes()
    if dtype == "bfloat16":
        return dtype, (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return dtype, array.astype(dtype).tobytes()


def as_stored(array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """What a reader must give back for the array written in `dtype`."""
    if dtype == "bfloat16":
        return (array.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    return array.astype(dtype)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def write_raw_safetensors(path: Path, header: Any, data: bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def write_safetensors(path: Path, arrays: Arrays, dtype: str | None = None) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for key, array in arrays.items():
        stored, content = encode(array, dtype)
        header[key] = {
            "dtype": SAFETENSORS_CODES[stored],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    write_raw_safetensors(path, header, data)


def read_safetensors_plainly(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """A float32 file, read in the shortest way."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    found: dict[str, np.ndarray[Any, Any]] = {}
    for key, entry in header.items():
        assert entry["dtype"] == "F32"
        begin, end = entry["data_offsets"]
        flat = np.frombuffer(raw[start + begin : start + end], np.float32)
        found[key] = flat.reshape(entry["shape"])
    return found


# The opcodes of pickle protocol 2 that torch.save uses.


def pickle_global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def pickle_text(text: str) -> bytes:
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


def pickle_int(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def pickle_tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def pickle_call(module: str, name: str, *arguments: bytes) -> bytes:
    return pickle_global(module, name) + pickle_tuple(*arguments) + b"R"


def pickle_storage(key: str, dtype: str, length: int) -> bytes:
    kind = pickle_global("torch", STORAGES[dtype])
    return (
        pickle_tuple(
            pickle_text("storage"),
            kind,
            pickle_text(key),
            pickle_text("cpu"),
            pickle_int(length),
        )
        + b"Q"
    )


def pickle_tensor(
    storage: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> bytes:
    return pickle_call(
        "torch._utils",
        "_rebuild_tensor_v2",
        storage,
        pickle_int(offset),
        pickle_tuple(*map(pickle_int, shape)),
        pickle_tuple(*map(pickle_int, strides)),
        b"\x89",
        pickle_call("collections", "OrderedDict"),
    )


def pickle_parameter(tensor: bytes) -> bytes:
    return pickle_call(
        "torch._utils",
        "_rebuild_parameter",
        tensor,
        b"\x88",
        pickle_call("collections", "OrderedDict"),
    )


def pickle_dict(items: Mapping[str, bytes]) -> bytes:
    """A whole pickle: an OrderedDict with the `_metadata` that a state dict carries."""
    pairs = b"".join(pickle_text(key) + value for key, value in items.items())
    state = b"}" + pickle_text("_metadata") + pickle_call("collections", "OrderedDict") + b"s"
    return (
        b"\x80\x02"
        + pickle_call("collections", "OrderedDict")
        + (b"(" + pairs + b"u" if pairs else b"")
        + state
        + b"b."
    )


def write_torch_zip(
    path: Path,
    description: bytes,
    storages: Mapping[str, bytes],
    compression: int = zipfile.ZIP_STORED,
    byteorder: bytes = b"little",
) -> None:
    root = path.stem
    with zipfile.ZipFile(path, "w") as archive:
        entries = {"data.pkl": description, "byteorder": byteorder}
        entries |= {f"data/{key}": content for key, content in storages.items()}
        for name, content in {**entries, "version": b"3\n"}.items():
            info = zipfile.ZipInfo(f"{root}/{name}")
            info.compress_type = compression if name.startswith("data/") else zipfile.ZIP_STORED
            # torch aligns storages with such padding, so no reader may assume a fixed header.
            info.extra = b"FB" + (13).to_bytes(2, "little") + b"Z" * 13
            archive.writestr(info, content)


def write_torch(path: Path, arrays: Arrays, dtype: str | None = None) -> None:
    items: dict[str, bytes] = {}
    storages: dict[str, bytes] = {}
    for number, (key, array) in enumerate(arrays.items()):
        stored, content = encode(array, dtype)
        strides = np.empty(array.shape, np.int8).strides
        storage = pickle_storage(str(number), stored, array.size)
        tensor = pickle_tensor(storage, 0, array.shape, strides)
        items[key] = pickle_parameter(tensor) if number % 2 else tensor
        storages[str(number)] = content
    write_torch_zip(path, pickle_dict(items), storages)


def write_sharded(
    folder: Path, arrays: Arrays, dtype: str | None = None, suffix: str = "bin"
) -> None:
    """Two shards and their index, named as transformers does."""
    stem = "pytorch_model" if suffix == "bin" else "model"
    write = write_torch if suffix == "bin" else write_safetensors
    keys = list(arrays)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), 1):
        name = f"{stem}-{number:05}-of-00002.{suffix}"
        write(folder / name, {key: arrays[key] for key in part}, dtype)
        weight_map |= dict.fromkeys(part, name)
    write_json(folder / f"{stem}.{suffix}.index.json", {"weight_map": weight_map})
