"""The files that an ONNX model reads besides itself.

A runtime reads the weights of a graph from whatever file the graph names. A bundle's reader has to
know these names before that, as it reads no file that was not compared with its checksum. This
module walks the few messages of onnx.proto that can lead to such a name, without the package onnx,
which the light path does not have."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from paddle_recomp.errors import BundleError
from paddle_recomp.protobuf import fields

_TENSOR = {13: "entry"}
_ATTRIBUTE = {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"}
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": _ATTRIBUTE,
    "tensor": _TENSOR,
    "sparse": {1: "tensor", 2: "tensor"},
}
"""By message the fields that hold other messages of these kinds; all others are passed over."""
_DEEPEST = 100
_KEY = b"location"


def external_files(path: Path) -> set[str]:
    """The names under which a model looks for its weights, relative to its folder.

    Raises: BundleError for a file that is no ONNX model or cannot be read."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            # Nearly every graph has its weights in itself, and is not walked.
            if data.find(_KEY) < 0:
                return set()
            view = memoryview(data)
            try:
                return set(_locations(view, "model", 0))
            finally:
                view.release()
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is not an ONNX model: {error}") from error


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError(f"messages more than {_DEEPEST} deep")
    for number, value in fields(message):
        if not isinstance(value, memoryview):
            continue
        inner = _FIELDS[kind].get(number)
        if inner == "entry":
            texts = [item for item in fields(value) if isinstance(item[1], memoryview)]
            pair = {field: bytes(text).decode() for field, text in texts}
            if pair.get(1) == _KEY.decode():
                yield pair.get(2, "")
        elif inner is not None:
            yield from _locations(value, inner, depth + 1)
        value.release()
