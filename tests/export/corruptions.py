"""Single corruptions of an exported bundle: one number, row, matrix or attribute is not as it was
exported. As data, so that every one of them can be tried against every check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from paddle_recomp.bundle import write_checksums


class Stored:
    """A graph's files, whose tensors and nodes can be changed where they lie."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = onnx.load(path, load_external_data=False)
        self.tensors = {item.name: item for item in self.model.graph.initializer}

    def name(self, name: str) -> str:
        """A tensor by its name in float; INT8 has its levels under another."""
        (found,) = (one for end in ("", ".int8", ".bits") if (one := name + end) in self.tensors)
        return found

    def read(self, name: str) -> np.ndarray:
        tensor = self.tensors[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor).copy()
        return np.array(self._mapped(tensor, "r"))

    def write(self, name: str, array: np.ndarray) -> None:
        tensor, before = self.tensors[name], self.read(name)
        assert (array.dtype, array.shape) == (before.dtype, before.shape)
        assert not np.array_equal(array, before), "a corruption changes something"
        if tensor.data_location == TensorProto.EXTERNAL:
            self._mapped(tensor, "r+")[...] = array
        else:
            tensor.CopyFrom(numpy_helper.from_array(array, name))

    def _mapped(self, tensor: TensorProto, mode: Any) -> np.memmap:
        about = {item.key: item.value for item in tensor.external_data}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        path, offset = self.path.parent / about["location"], int(about["offset"])
        return np.memmap(path, dtype, mode, offset, tuple(tensor.dims))

    def nodes(self, kind: str) -> list[NodeProto]:
        return [node for node in self.model.graph.node if node.op_type == kind]

    def save(self) -> None:
        self.path.write_bytes(self.model.SerializeToString(deterministic=True))


Change = Callable[[Stored], None]


@dataclass(frozen=True)
class Corruption:
    """What is wrong in a graph of a bundle."""

    name: str
    graph: str
    change: Change

    def apply(self, folder: Path) -> None:
        """Changes a bundle's files, and makes the checksums fit, so that nothing else tells."""
        stored = Stored(folder / f"{self.graph}.onnx")
        self.change(stored)
        stored.save()
        write_checksums(folder)

    @property
    def files(self) -> tuple[str, ...]:
        """What has to be put back afterwards."""
        return (f"{self.graph}.onnx", f"{self.graph}.onnx.data", "SHA256SUMS")


def edited(name: str, edit: Callable[[np.ndarray], Any]) -> Change:
    """One tensor: `edit` changes the array, or gives another one."""

    def change(stored: Stored) -> None:
        array = stored.read(found := stored.name(name))
        given = edit(array)
        made = array if given is None else given
        stored.write(found, np.ascontiguousarray(made, dtype=array.dtype))

    return change


def zeroed(name: str, *rows: int) -> Change:
    """All of a tensor, or some of its rows."""

    def edit(array: np.ndarray) -> None:
        array[list(rows) if rows else ...] = 0

    return edited(name, edit)


def negated(name: str) -> Change:
    """All signs. Eight bits with a middle of 128 have their signs around that."""

    def edit(array: np.ndarray) -> np.ndarray:
        return -array if array.dtype != np.uint8 else np.clip(256 - array.astype(int), 0, 255)

    return edited(name, edit)


def transposed(name: str) -> Change:
    """A square matrix."""
    return edited(name, lambda array: array.T.copy())


def swapped_rows(name: str, *, width: int = 1) -> Change:
    """The first rows, `width` of them, and those behind: with the width of a head, two heads."""

    def edit(array: np.ndarray) -> None:
        array[: 2 * width] = np.roll(array[: 2 * width].copy(), width, axis=0)

    return edited(name, edit)


def doubled(name: str) -> Change:
    """A matrix twice as large; INT8 has that in its scales."""

    def change(stored: Stored) -> None:
        found = stored.name(name)
        found = found if found == name else f"{name}.scale"
        stored.write(found, 2 * stored.read(found))

    return change


def one_number(name: str) -> Change:
    """The sign of the largest number alone."""

    def edit(array: np.ndarray) -> None:
        place = np.unravel_index(np.abs(array.astype(np.float64)).argmax(), array.shape)
        array[place] = -array[place]

    return edited(name, edit)


def last_bit(name: str) -> Change:
    """The smallest change there is, of one float."""

    def edit(array: np.ndarray) -> None:
        array.reshape(-1)[0] = np.nextafter(array.reshape(-1)[0], np.float32(np.inf))

    return edited(name, edit)


def swapped_layers(first: str, second: str) -> Change:
    """Everything of two layers."""

    def change(stored: Stored) -> None:
        names = [name for name in stored.tensors if name.startswith(first)]
        assert names
        for name in names:
            other = second + name.removeprefix(first)
            ours, theirs = stored.read(name), stored.read(other)
            if not np.array_equal(ours, theirs):
                stored.write(name, theirs)
                stored.write(other, ours)

    return change


def attribute(kind: str, name: str, edit: Callable[[Any], Any], node: int = 0) -> Change:
    """A number of one node of a kind."""

    def change(stored: Stored) -> None:
        made = stored.nodes(kind)[node]
        kept = [item for item in made.attribute if item.name != name]
        (before,) = (
            onnx.helper.get_attribute_value(item) for item in made.attribute if item.name == name
        )
        after = edit(before)
        assert after != before
        del made.attribute[:]
        made.attribute.extend([*kept, onnx.helper.make_attribute(name, after)])

    return change


def operator(kind: str, other: str, node: int = 0) -> Change:
    """One node computes something else."""

    def change(stored: Stored) -> None:
        stored.nodes(kind)[node].op_type = other

    return change


def constant(value: float, other: float) -> Change:
    """A number of the graph itself, the only one of its value, or the first."""

    def change(stored: Stored) -> None:
        for name in stored.tensors:
            array = stored.read(name)
            if array.size == 1 and array.dtype.kind in "fi" and np.isclose(array.item(), value):
                stored.write(name, np.full_like(array, other))
                return
        raise AssertionError(f"no constant is {value}")

    return change


def rope_of(base: float) -> Change:
    """The tables of rotary positions for another base."""

    def change(stored: Stored) -> None:
        for name, function in (("rope.cos", np.cos), ("rope.sin", np.sin)):
            length, half = stored.read(name).shape
            angles = np.arange(length)[:, None] / base ** (np.arange(half) / half)
            stored.write(name, function(angles).astype(np.float32))

    return change


POSITIONS = "vision_tower.embeddings.position_embedding.weight"
WORDS = "text_tower.embeddings.token_embedding.weight"
V, T = "vision_tower.encoder.layers", "text_tower.encoder.layers"
VISION: dict[str, Change] = {
    "a bias of the first layer": zeroed(f"{V}.0.mlp.fc1.bias"),
    "a bias of an inner layer": zeroed(f"{V}.3.mlp.fc2.bias"),
    "the bias of queries": zeroed(f"{V}.4.self_attn.q_proj.bias"),
    "the bias of keys, which no score shows": zeroed(f"{V}.2.self_attn.k_proj.bias"),
    "the bias of values": zeroed(f"{V}.3.self_attn.v_proj.bias"),
    "the bias behind attention": zeroed(f"{V}.1.self_attn.out_proj.bias"),
    "the last bit of a bias": last_bit(f"{V}.1.mlp.fc1.bias"),
    "the bias of the first norm": zeroed("vision_tower.pre_layrnorm.bias"),
    "the bias of the last norm": zeroed("vision_tower.post_layernorm.bias"),
    "the weight of the last norm": doubled("vision_tower.post_layernorm.weight"),
    "one number of a norm": one_number(f"{V}.2.layer_norm2.weight"),
    "the class token": negated("vision_tower.embeddings.class_embedding"),
    "the position of the class token": zeroed(POSITIONS, 0),
    "the position of the last patch": zeroed(POSITIONS, -1),
    "one filter": zeroed("vision_tower.embeddings.patch_embedding.weight", 5),
    "a negated matrix": negated(f"{V}.0.self_attn.q_proj.weight"),
    "a transposed matrix": transposed(f"{V}.2.self_attn.k_proj.weight"),
    "two heads": swapped_rows(f"{V}.1.self_attn.out_proj.weight", width=32),
    "a scale": doubled(f"{V}.4.mlp.fc1.weight"),
    "one number of a matrix": one_number(f"{V}.3.mlp.fc1.weight"),
    "two layers": swapped_layers(f"{V}.1.", f"{V}.2."),
    "two rows of the projection": swapped_rows("vision_tower.visual_projection.weight"),
    "the epsilon of a norm": attribute("LayerNormalization", "epsilon", lambda x: 100 * x, 3),
    "the scale of attention": attribute("MultiHeadAttention", "scale", lambda x: 1.01 * x, 2),
    "the number of heads": attribute("MultiHeadAttention", "num_heads", lambda x: x // 2, 1),
    "the number in the activation": constant(1.702, 1.7),
    "the kind of an activation": operator("Sigmoid", "Tanh", 2),
}
TEXT: dict[str, Change] = {
    "a row of words that no question has": zeroed(WORDS, 700),
    "nearly all rows of words": zeroed(WORDS, *range(20, 697)),
    "the last position": zeroed("text_tower.embeddings.position_embedding.weight", 75),
    "a bias": zeroed(f"{T}.0.self_attn.q_proj.bias"),
    "a negated matrix": negated(f"{T}.1.self_attn.out_proj.weight"),
    "a transposed projection": transposed("text_tower.text_projection.weight"),
    "the bias of the last norm": zeroed("text_tower.final_layer_norm.bias"),
    "the epsilon of a norm": attribute("LayerNormalization", "epsilon", lambda x: x / 10, -1),
    "two layers": swapped_layers(f"{T}.0.", f"{T}.1."),
    "the scale of attention": attribute("MultiHeadAttention", "scale", lambda x: 1.01 * x, 1),
    "the kind of an activation": operator("Sigmoid", "Tanh"),
}
COMPRESS: dict[str, Change] = {
    "the first bias of the projector": zeroed("projector.linear_1.bias"),
    "the second bias of the projector": zeroed("projector.linear_2.bias"),
    "a negated matrix": negated("projector.linear_2.weight"),
    "a scale": doubled("projector.linear_1.weight"),
    "one number of a matrix": one_number("projector.linear_1.weight"),
    "the kind of the activation": operator("Erf", "Tanh"),
}
ENCODER: dict[str, Change] = {
    "a bias of the vision tower": zeroed(f"{V}.2.mlp.fc2.bias"),
    "a row of words": zeroed(WORDS, 700),
    "a transposed matrix": transposed(f"{V}.3.self_attn.v_proj.weight"),
    "the epsilon of a norm": attribute("LayerNormalization", "epsilon", lambda x: 100 * x, 7),
    "the projector's bias": zeroed("projector.linear_2.bias"),
    "the number in the activation": constant(1.702, 1.7),
}
DECODER: dict[str, Change] = {
    "two heads": swapped_rows("layers.1.self_attn.o_proj.weight", width=32),
    "a transposed matrix": transposed("layers.2.self_attn.o_proj.weight"),
    "a negated matrix": negated("layers.0.mlp.gate_proj.weight"),
    "a scale": doubled("layers.1.mlp.down_proj.weight"),
    "a norm": doubled("layers.2.post_attention_layernorm.weight"),
    "the last norm": one_number("norm.weight"),
    "a word of the output layer": edited(
        "lm_head.weight", lambda array: np.where(np.arange(array.shape[1]) == 650, 0, array)
    ),
    "two layers": swapped_layers("layers.1.", "layers.2."),
    "the base of rotary positions": rope_of(20_000.0),
    "one late rotary position": zeroed("rope.cos", -1),
    "the first epsilon": edited("epsilon", lambda array: 10 * array),
    "the epsilon of a norm": attribute(
        "SkipSimplifiedLayerNormalization", "epsilon", lambda x: 10 * x, 2
    ),
    "the scale of attention": attribute("GroupQueryAttention", "scale", lambda x: 1.01 * x, 1),
    "the number in the activation": attribute("QuickGelu", "alpha", lambda x: 1.01 * x),
}
CORRUPTIONS = [
    Corruption(f"{graph}: {name}", graph, change)
    for graph, found in (
        ("vision", VISION),
        ("text", TEXT),
        ("compress", COMPRESS),
        ("encoder", ENCODER),
        ("decoder", DECODER),
    )
    for name, change in found.items()
]
