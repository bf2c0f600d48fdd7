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
from paddle_recomp.json_files import one_line, parse_json
from paddle_recomp.limits import limits, the_limit

_MAX_HEADER = 100 * 2**20
"""Bytes of a header, by the format's own definition."""
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
        if length > limits().header_bytes:
            raise CheckpointError(
                f"{path}: the header has {length} bytes; {the_limit('header_bytes')}"
            )
        raw = file.read(length)
    header = parse_json(raw, f"{path}: the header")
    header.pop("__metadata__", None)
    bounds = limits()
    if len(header) > bounds.tensors:
        raise CheckpointError(f"{path} has {len(header)} tensors; {the_limit('tensors')}")
    start = 8 + length
    tensors = {key: _tensor(path, key, entry, start, bounds.axes) for key, entry in header.items()}
    _check_coverage(path, list(tensors.values()), start, size)
    return tensors


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**63 for item in value
    )


def _tensor(path: Path, key: str, entry: Any, start: int, most_axes: int) -> StoredTensor:
    place = f"{path}: {one_line(key)}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{place} has no description in the header")
    code, shape, offsets = (entry.get(name) for name in ("dtype", "shape", "data_offsets"))
    if not isinstance(code, str) or code not in _DTYPES:
        raise CheckpointError(f"{place} has the unknown dtype {one_line(repr(code))}")
    if isinstance(shape, list) and len(shape) > most_axes:
        raise CheckpointError(f"{place} has {len(shape)} axes; {the_limit('axes')}")
    if not isinstance(shape, list) or not _is_sizes(shape):
        raise CheckpointError(f"{place} has no valid shape")
    if not isinstance(offsets, list) or not _is_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{place} has no valid data_offsets")
    begin, end = offsets
    needed = math.prod(shape) * ITEM_SIZES[_DTYPES[code]]
    if end - begin != needed:
        raise CheckpointError(
            f"{place} has {one_line(end - begin)} bytes, but {code} {one_line(shape)} needs "
            f"{one_line(needed)}"
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
                f"{path}: {one_line(tensor.key)} ends at byte "
                f"{tensor.offset + tensor.nbytes} of a file of {size}; truncated"
            )
        if tensor.offset != position:
            fault = "overlaps another tensor" if tensor.offset < position else "follows a gap"
            raise CheckpointError(f"{path}: {one_line(tensor.key)} {fault}")
        position += tensor.nbytes
    if position != size:
        raise CheckpointError(f"{path}: {size - position} bytes belong to no tensor")
