"""The header of a .safetensors file.

An own reader, because NumPy has no bfloat16 and the safetensors package cannot give one to it,
nor say where in the file a tensor lies.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from paddle_recomp.checkpoint.tensors import ITEM_SIZES, StoredTensor, contiguous_strides
from paddle_recomp.errors import CheckpointError
from paddle_recomp.json_files import parse_json

_MAX_HEADER = 100 * 2**20
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2",
}


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file by its key; reads the header only.

    Raises: CheckpointError for a damaged header, or places that overlap, leave gaps or lie
    outside the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            raise CheckpointError(
                f"{path}: the header claims {length} bytes in a file of {size}; truncated, or no "
                "safetensors file"
            )
        raw = file.read(length)
    header = parse_json(raw, f"{path}: the header")
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = {key: _tensor(path, key, entry, start) for key, entry in header.items()}
    _check_coverage(path, list(tensors.values()), start, size)
    return tensors


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _tensor(path: Path, key: str, entry: Any, start: int) -> StoredTensor:
    if not isinstance(entry, dict):
        raise CheckpointError(f"{path}: {key} has no description in the header")
    code, shape, offsets = (entry.get(name) for name in ("dtype", "shape", "data_offsets"))
    if not isinstance(code, str) or code not in _DTYPES:
        raise CheckpointError(f"{path}: {key} has the unknown dtype {code!r}")
    if not isinstance(shape, list) or not _is_sizes(shape):
        raise CheckpointError(f"{path}: {key} has no valid shape")
    if not isinstance(offsets, list) or not _is_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: {key} has no valid data_offsets")
    begin, end = offsets
    needed = math.prod(shape) * ITEM_SIZES[_DTYPES[code]]
    if end - begin != needed:
        raise CheckpointError(
            f"{path}: {key} has {end - begin} bytes, but {code} {shape} needs {needed}"
        )
    return StoredTensor(
        file=path,
        key=key,
        dtype=_DTYPES[code],
        shape=tuple(shape),
        offset=start + begin,
        strides=contiguous_strides(tuple(shape)),
    )


def _check_coverage(path: Path, tensors: list[StoredTensor], start: int, size: int) -> None:
    """The format allows neither overlaps nor gaps."""
    position = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset + tensor.nbytes > size:
            raise CheckpointError(
                f"{path}: {tensor.key} ends at byte {tensor.offset + tensor.nbytes} of a file of "
                f"{size}; truncated"
            )
        if tensor.offset != position:
            fault = "overlaps another tensor" if tensor.offset < position else "follows a gap"
            raise CheckpointError(f"{path}: {tensor.key} {fault}")
        position += tensor.nbytes
    if position != size:
        raise CheckpointError(f"{path}: {size - position} bytes belong to no tensor")
