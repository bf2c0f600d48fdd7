"""A tensor as a place in a file, and the one way to bring it into memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_recomp.errors import CheckpointError
from paddle_recomp.json_files import one_line

ITEM_SIZES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
    "float8_e4m3": 1,
    "float8_e5m2": 1,
}
"""Bytes of one item, for every type that a file may hold beside the parameters."""

PARAMETER_DTYPES = ("float32", "float16", "bfloat16")
"""The types in which a parameter may be stored."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies. The reader that made it has checked that the place is in the file."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Of the first item, in bytes from the start of the file."""
    strides: tuple[int, ...]
    """In items."""

    @property
    def size(self) -> int:
        """Items of the tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, without gaps."""
        return self.size * ITEM_SIZES[self.dtype]


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in items, of a tensor without gaps."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides[: len(shape)]))


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many items a tensor spans, from its first item to its last, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def load(tensor: StoredTensor) -> np.ndarray[Any, Any]:
    """The tensor as an array of its shape: a read-only view of the file for float32 and float16,
    a float32 copy for bfloat16. Each view is a mapping of its own, so that its pages leave the
    process with it.

    Raises: CheckpointError for a type that no parameter has, or when the file has gone."""
    if tensor.dtype not in PARAMETER_DTYPES:
        raise CheckpointError(
            f"{tensor.file}: {one_line(tensor.key)} is {tensor.dtype}; expected one of "
            f"{', '.join(PARAMETER_DTYPES)}"
        )
    stored = np.dtype("<u2" if tensor.dtype == "bfloat16" else tensor.dtype).newbyteorder("<")
    try:
        # An empty one may claim more of its other axes than an array can have.
        view = _view(tensor, stored) if tensor.size else np.empty(tensor.shape, stored)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{tensor.file}: {one_line(tensor.key)} cannot be read: {one_line(error, 200)}"
        ) from error
    if tensor.dtype != "bfloat16":
        return view
    wide = view.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def stored_bytes(tensor: StoredTensor, most: int) -> bytes:
    """The first bytes of a tensor as they are stored, at most so many.

    Raises: CheckpointError when the file has gone."""
    try:
        with tensor.file.open("rb") as file:
            file.seek(tensor.offset)
            return file.read(min(most, tensor.nbytes))
    except OSError as error:
        raise CheckpointError(
            f"{tensor.file}: {one_line(tensor.key)} cannot be read: {error.strerror or error}"
        ) from error


def _view(tensor: StoredTensor, stored: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Raises: OSError, ValueError."""
    span = extent(tensor.shape, tensor.strides)
    flat = np.memmap(tensor.file, dtype=stored, mode="r", offset=tensor.offset, shape=(span,))
    strides = tuple(stride * stored.itemsize for stride in tensor.strides)
    return np.ndarray(tensor.shape, stored, buffer=flat, strides=strides)
