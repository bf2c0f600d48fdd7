"""Weights in a file beside the graph, written one by one, so that memory holds one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from onnx import TensorProto, helper

_ALIGNED = 4096
"""Each weight begins at a multiple of so many bytes, so that a runtime can map it into memory."""
_INLINE = 1024
"""Constants of up to so many bytes stay in the graph, where shape inference can read them."""


@dataclass
class ExternalData:
    """The open file, and the tensors written into it."""

    name: str
    file: BinaryIO
    tensors: list[TensorProto] = field(default_factory=list)

    def add(self, name: str, array: np.ndarray) -> str:
        """Stores an array under a name, which is returned."""
        array = np.ascontiguousarray(array)
        tensor = TensorProto(
            name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype)
        )
        if array.nbytes <= _INLINE:
            tensor.raw_data = array.tobytes()
        else:
            self.file.write(b"\0" * (-self.file.tell() % _ALIGNED))
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": self.name, "offset": self.file.tell(), "length": array.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            array.tofile(self.file)
        self.tensors.append(tensor)
        return name


@contextmanager
def external_data(path: Path) -> Iterator[ExternalData]:
    """Opens the file for a graph that will lie beside it."""
    with path.open("wb") as file:
        yield ExternalData(path.name, file)
