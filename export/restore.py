"""The float graph that an INT8 graph was made from, with the checkpoint's own weights in it.

INT8 rounds so much that a wrong constant can hide in it. Without the rounding it cannot: the float
graph has to compute what the checkpoint computes, and quantised again it has to be the INT8 graph,
node by node and number by number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from paddle_recomp.checkpoint import Checkpoint

from .errors import ExportError
from .onnx_graph import OnnxGraph, node_bytes
from .quantise import quantise, quantised_inputs
from .scales import Range

PARTS = ("vision_tower", "text_tower", "projector")
"""The parts of a checkpoint whose parameters the graphs have, under `PART.NAME`."""
_ROUNDED = (".uint8", ".int8", ".int32", ".float", ".scale", ".zero", ".rounded")
"""How the values and constants end that only an INT8 graph has."""


Weight = Callable[[str, bool], np.ndarray]
"""The name of a parameter, and whether a product reads it -> its numbers in float32."""


@dataclass(frozen=True)
class Restored:
    """A graph in float, and whether the stored one is its rounding."""

    graph: OnnxGraph
    equal: Mapping[str, bool]
    """Whether each constant that comes from a parameter is the one that is stored."""
    same_nodes: bool
    """Whether the stored graph has the nodes that quantising gives."""


def restore(
    stored: OnnxGraph, weight: Weight, ranges: Mapping[str, Range] | None = None
) -> Restored:
    """`ranges` holds those of the layers' inputs, by the layers' names; None where they are
    measured at run time."""
    nodes = list(_in_float(stored))
    taken = {name for node in nodes for name in node.input}
    products = {node.input[1] for node in nodes if node.op_type == "MatMul"}
    weights = {name: weight(name, name in products) for name in taken if _is_parameter(name)}
    plain = {name: value for name, value in stored.constants.items() if name in taken}
    graph = OnnxGraph(nodes, plain | weights, stored.inputs, stored.outputs, stored.opset)
    rounded = [name for name in weights if name not in stored.constants]
    again = graph
    if rounded:
        again = quantise(graph, rounded, None if ranges is None else _by_value(graph, ranges))
    wanted = {name: value for name, value in again.constants.items() if name not in plain}
    wanted |= {name: value for name, value in weights.items() if name in plain}
    equal = {
        name: name in stored.constants and _same(value, stored.constants[name])
        for name, value in wanted.items()
    }
    same = [*map(node_bytes, again.nodes)] == [*map(node_bytes, stored.nodes)]
    return Restored(graph, equal, same and again.constants.keys() == stored.constants.keys())


def check_rounding(made: OnnxGraph, graph: OnnxGraph, ranges: Mapping[str, Range] | None) -> None:
    """Looks that an INT8 graph differs from the float graph by its rounding alone: no comparison of
    what both compute tells a bias that was lost from the rounding of all layers.

    Raises: ExportError."""
    found = restore(made, lambda name, product: graph.constants[name], ranges)
    wrong = [name for name, same in found.equal.items() if not same]
    wrong += [
        name
        for name, value in graph.constants.items()
        if name not in found.graph.constants or not _same(value, found.graph.constants[name])
    ]
    if wrong:
        raise ExportError(f"INT8 changed {min(wrong)}; expected rounded weights and nothing else")
    ours, theirs = ([*map(node_bytes, one.nodes)] for one in (graph, found.graph))
    if ours != theirs or not found.same_nodes:
        raise ExportError("INT8 changed nodes; expected rounded weights and nothing else")


def _in_float(stored: OnnxGraph) -> Iterator[NodeProto]:
    """The nodes without those that round. What looks like them and is not gives other nodes when
    it is quantised again."""
    made = stored.producers()
    for node in stored.nodes:
        out = node.output[0]
        integers, rows = made.get(f"{out}.int32"), made.get(f"{out}.int8")
        if out.endswith(_ROUNDED):
            continue
        if integers is not None:
            operands = [_plain(name) for name in integers.input[:2]]
            yield helper.make_node("MatMul", operands, node.output, node.name)
        elif rows is not None:
            operands = [_plain(rows.input[0]), rows.input[1]]
            yield helper.make_node("Gather", operands, node.output, node.name)
        elif node.op_type == "MatMul" and node.input[1].endswith(".rounded"):
            operands = [_plain(name) for name in node.input]
            yield helper.make_node("MatMul", operands, node.output, node.name)
        else:
            yield node


def _plain(name: str) -> str:
    return name.rpartition(".")[0] if name.endswith(_ROUNDED) else name


def _by_value(graph: OnnxGraph, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """The range of each value that is rounded; no range leaves the scale at one."""
    inputs = quantised_inputs(graph)
    return {value: ranges.get(layer, (0.0, 0.0)) for layer, value in inputs.items()}


def _is_parameter(name: str) -> bool:
    return name.partition(".")[0] in PARTS


def weights_of(checkpoint: Checkpoint) -> Weight:
    """The parameters of a checkpoint. A product has its weight as [in, out], a checkpoint as
    [out, in]. The function raises CheckpointError for one that the checkpoint does not have."""

    def weight(name: str, product: bool) -> np.ndarray:
        part, _, rest = name.partition(".")
        value = checkpoint.parameter(part, rest).astype(np.float32)
        return np.ascontiguousarray(value.T) if product else value

    return weight


def _same(expected: np.ndarray, found: np.ndarray) -> bool:
    return expected.dtype == found.dtype and np.array_equal(expected, found)
