"""Whether a decoder's files are what its checkpoint gives: every node, and every tensor to the last
bit, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from paddle_recomp.checkpoint import Checkpoint

from ..onnx_graph import node_bytes
from .graph import ROPE, build_graph
from .products import PRECISIONS

_LAST_PLACES = 1e-6
"""Powers, sines and cosines differ by this much between processors, at the first position. An angle
grows with its position, and so does its error."""


@dataclass
class _Compared:
    """Takes the tensors that an export would write, and compares each with the stored one."""

    folder: Path
    stored: Mapping[str, TensorProto]
    equal: dict[str, bool] = field(default_factory=dict)

    def add(self, name: str, array: np.ndarray) -> str:
        """See `Tensors`. A number by itself is stored as an array of one."""
        self.equal[name] = name in self.stored and self._same(name, np.ascontiguousarray(array))
        return name

    def _same(self, name: str, array: np.ndarray) -> bool:
        found = self._read(self.stored[name])
        if array.dtype != found.dtype or array.shape != found.shape:
            return False
        if name in ROPE:
            limit = _LAST_PLACES * (1 + np.arange(len(array)))[:, None]
            return bool((np.abs(array - found) <= limit).all())
        return np.array_equal(array, found)

    def _read(self, tensor: TensorProto) -> np.ndarray:
        """The array of a tensor, mapped into memory where it lies in a file of its own."""
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        about = {item.key: item.value for item in tensor.external_data}
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        path, offset = self.folder / about["location"], int(about.get("offset", 0))
        return np.memmap(path, dtype, "r", offset, tuple(tensor.dims))


def compare_decoder_files(
    checkpoint: Checkpoint, path: Path, precision: str
) -> tuple[dict[str, bool], bool]:
    """Whether each tensor of the decoder at `path` is the one that the checkpoint gives, and
    whether the nodes are. The file has been compared with its checksum."""
    graph = onnx.load(path, load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    compared = _Compared(path.parent, stored)
    nodes = build_graph(checkpoint, PRECISIONS[precision](), compared)
    same = [*map(node_bytes, nodes)] == [*map(node_bytes, graph.node)]
    return compared.equal, same and compared.equal.keys() == stored.keys()
