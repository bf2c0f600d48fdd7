"""A product with a weight, in each precision: the nodes of the graph and the tensors of the
file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from onnx import NodeProto, helper

from ..quantise import dynamic, eight_bits

_CHUNK = 1 << 22
"""So many elements of a weight are in memory as float32 at one time, or a single row if that has
more."""


class Tensors(Protocol):
    """Whatever takes the tensors of a graph, one by one."""

    def add(self, name: str, array: np.ndarray) -> str:
        """Takes an array under a name, which is returned."""
        ...


@dataclass
class GraphWriter:
    """Nodes in the order in which they run, and what takes their weights."""

    data: Tensors
    nodes: list[NodeProto] = field(default_factory=list)

    def node(
        self,
        kind: str,
        inputs: list[str],
        outputs: str | list[str],
        domain: str = "",
        **options: object,
    ) -> str:
        """Appends a node, which is named after its first output; returns that output."""
        names = [outputs] if isinstance(outputs, str) else outputs
        label = f"{names[0]}.{kind}"
        self.nodes.append(helper.make_node(kind, inputs, names, label, domain=domain, **options))
        return names[0]


class Matrix(NamedTuple):
    """A weight [N, K] as a checkpoint stores it, or several on top of each other: views of the
    files, which are never all in memory as float32."""

    name: str
    parts: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """N, K."""
        return sum(len(part) for part in self.parts), self.parts[0].shape[1]

    def chunks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Some rows at a time: their places, and their numbers [n, K] float32."""
        start = 0
        for part in self.parts:
            step = max(_CHUNK // part.shape[1], 1)
            for begin in range(0, len(part), step):
                rows = part[begin : begin + step].astype(np.float32)
                yield slice(start, start + len(rows)), rows
                start += len(rows)


class Product(Protocol):
    """Writes output [..., N] = value [..., K] times a weight [N, K] transposed."""

    @property
    def description(self) -> str:
        """Of the weights, in a few words."""
        ...

    def __call__(self, graph: GraphWriter, value: str, weight: Matrix, output: str) -> str:
        """Stores the weight, appends the nodes and returns `output`."""
        ...


@dataclass
class Float32:
    """The weight as it is, in float32."""

    description = "float32"

    def __call__(self, graph: GraphWriter, value: str, weight: Matrix, output: str) -> str:
        """See `Product`."""
        rows, columns = weight.shape
        numbers = np.empty((columns, rows), dtype=np.float32)
        for place, chunk in weight.chunks():
            numbers[:, place] = chunk.T
        return graph.node("MatMul", [value, graph.data.add(weight.name, numbers)], output)


@dataclass
class Int8:
    """U8 activations, whose range is measured at run time, and S8 weights of one scale per output
    channel: integer products, the fast prefill."""

    description = "int8 per channel"
    _measured: set[str] = field(default_factory=set)

    def __call__(self, graph: GraphWriter, value: str, weight: Matrix, output: str) -> str:
        """See `Product`."""
        rows, columns = weight.shape
        levels = np.empty((columns, rows), dtype=np.int8)
        small: dict[str, list[np.ndarray]] = {"scale": [], "zero": []}
        for place, chunk in weight.chunks():
            made = eight_bits("", chunk.T)
            levels[:, place] = made[".int8"]
            for key, found in small.items():
                found.append(made[f".{key}"])
        graph.data.add(f"{weight.name}.int8", levels)
        for key, found in small.items():
            graph.data.add(f"{weight.name}.{key}", np.concatenate(found))
        product = helper.make_node("MatMul", [value, weight.name], [output], f"{output}.MatMul")
        graph.nodes += dynamic(product, first=value not in self._measured)
        self._measured.add(value)
        return output


@dataclass
class Blocks:
    """Weights of four or eight bits with one scale for each block of a row, for little memory."""

    bits: int
    symmetric: bool
    """Whether zero is the middle level, or each block has a zero of its own."""
    block_size: int = 128
    accuracy_level: int = 4
    """4 rounds activations to eight bits and multiplies integers, which is much faster."""

    @property
    def description(self) -> str:
        """See `Product`."""
        return f"int{self.bits} in blocks of {self.block_size}"

    def __call__(self, graph: GraphWriter, value: str, weight: Matrix, output: str) -> str:
        """See `Product`."""
        rows, columns = weight.shape
        made = [self.encode(chunk) for _, chunk in weight.chunks()]
        inputs = [value]
        for key, parts in zip(("bits", "scale", "zero"), zip(*made, strict=True), strict=False):
            if parts[0] is not None:
                inputs.append(graph.data.add(f"{weight.name}.{key}", np.concatenate(parts)))
        return graph.node(
            "MatMulNBits",
            inputs,
            output,
            "com.microsoft",
            K=columns,
            N=rows,
            bits=self.bits,
            block_size=self.block_size,
            accuracy_level=self.accuracy_level,
        )

    def encode(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """[n, K] float32 -> levels [n, blocks, bytes] uint8, scales [n, blocks] float32, and the
        levels of zero, unless they are in the middle."""
        n, columns = rows.shape
        size, top = self.block_size, 2**self.bits - 1
        blocks = np.pad(rows, ((0, 0), (0, -columns % size))).reshape(n, -1, size)
        if self.symmetric:
            middle = (top + 1) // 2
            # The number farthest from zero becomes the lowest level, of which there is one more.
            farthest = np.take_along_axis(
                blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2
            )
            scale, zero = farthest / np.float32(-middle), np.float32(middle)
        else:
            low = np.minimum(blocks.min(axis=2, keepdims=True), 0)
            high = np.maximum(blocks.max(axis=2, keepdims=True), 0)
            scale = (high - low) / np.float32(top)
        scale = np.where(scale == 0, 1, scale).astype(np.float32)
        if not self.symmetric:
            zero = np.rint(-low / scale)
        levels = np.clip(np.rint(blocks / scale + zero), 0, top).astype(np.uint8)
        packed = _packed(levels) if self.bits == 4 else levels
        zeros = None if self.symmetric else np.asarray(zero, dtype=np.uint8)[..., 0]
        if zeros is not None and self.bits == 4:
            zeros = _packed(zeros)
        return packed, scale[..., 0], zeros


class Precision(NamedTuple):
    """The kinds of products in a decoder."""

    layers: Product
    down: Product
    """The product of the MLP's second layer. In trained models of this kind its input, the gated
    activations, has a few channels and positions that are a thousand times larger than all others,
    and one range would leave those others no levels."""
    head: Product
    """The product of the output layer, where every error is an error of the logits."""

    @property
    def description(self) -> dict[str, str]:
        """Of the weights, in a few words."""
        return {name: getattr(self, name).description for name in self._fields}


PRECISIONS: dict[str, Callable[[], Precision]] = {
    "fp32": lambda: Precision(Float32(), Float32(), Float32()),
    "int8": lambda: Precision(Int8(), Blocks(8, symmetric=True), Int8()),
    "int4": lambda: Precision(
        Blocks(4, symmetric=False), Blocks(4, symmetric=False), Blocks(8, symmetric=True)
    ),
}


def _packed(levels: np.ndarray) -> np.ndarray:
    """Two levels to a byte along the last axis, the first in the lower half."""
    if levels.shape[-1] % 2:
        levels = np.concatenate([levels, np.zeros_like(levels[..., :1])], axis=-1)
    return levels[..., ::2] | levels[..., 1::2] << 4
