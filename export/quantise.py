"""Linear layers in INT8: U8 activations of one scale, S8 weights of one scale per channel; and
embedding tables, of one scale per row.

Nothing else changes. Softmax and normalisations have ranges that eight bits lose, and take little
time. The first convolution is less than a hundredth of the work, its INT8 kernel gains little, and
an error in it would pass through all layers. The compressor compares scores that differ by less
than a step of INT8; the projector behind it feeds the language model directly."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import numpy as np
from onnx import NodeProto, TensorProto, helper

from .onnx_graph import OnnxGraph
from .scales import Range

_LEVELS, _WEIGHT_LEVELS = 255, 127
"""The levels of U8 above its lowest number, and of S8 to each side of zero, so that zero needs no
offset."""
_WEIGHT_INPUT = {"MatMul": 1, "Gather": 0}
_SHARED_INPUT = re.compile(r"\.[qkv]_proj\.weight$")


def weight_nodes(graph: OnnxGraph) -> dict[str, NodeProto]:
    """The nodes that can become INT8, by the name of their weight: products with [K, N], rows of
    [V, C]."""
    nodes = {}
    for node in graph.nodes:
        place = _WEIGHT_INPUT.get(node.op_type)
        value = None if place is None else graph.constants.get(node.input[place])
        if value is not None and value.ndim == 2 and value.dtype == np.float32:
            nodes[node.input[place]] = node
    return nodes


def quantised_inputs(graph: OnnxGraph) -> dict[str, str]:
    """The value that each layer rounds, by the layer's name."""
    return {
        layer_of(weight): node.input[0]
        for weight, node in weight_nodes(graph).items()
        if node.op_type == "MatMul"
    }


def layer_of(weight: str) -> str:
    """The group of weights that stay in float together: query, key and value read one input."""
    return _SHARED_INPUT.sub(".qkv_proj", weight).removesuffix(".weight")


def quantise(
    graph: OnnxGraph, weights: Collection[str], ranges: Mapping[str, Range] | None
) -> OnnxGraph:
    """A new graph in which the named weights are INT8. `ranges` holds those of their inputs; None
    measures them at run time, so a picture's scales depend on the other pictures of its batch."""
    nodes: list[NodeProto] = []
    constants, done = dict(graph.constants), set[str]()
    weight_of = {node.output[0]: name for name, node in weight_nodes(graph).items()}
    for node in graph.nodes:
        weight = weight_of.get(node.output[0])
        if weight is None or weight not in weights:
            nodes.append(node)
            continue
        if node.op_type == "Gather":
            levels, scale = _levels(graph.constants[weight], reduced=1)
            constants |= {f"{weight}.int8": levels, f"{weight}.scale": scale}
            nodes += _rows(node)
            continue
        value = node.input[0]
        constants |= eight_bits(weight, graph.constants[weight])
        if ranges is not None and value not in done:
            constants |= _scale_of(value, *ranges[value])
        make = dynamic if ranges is None else _static
        nodes += make(node, first=value not in done)
        done.add(value)
    made = OnnxGraph(nodes, constants, graph.inputs, graph.outputs, graph.opset)
    made.remove_unused()
    return made


def eight_bits(name: str, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Float [K, N] -> S8 [K, N], float scale [N], S8 zero [N]."""
    levels, scale = _levels(weight, reduced=0)
    zero = np.zeros(levels.shape[1], np.int8)
    return {f"{name}.int8": levels, f"{name}.scale": scale[0], f"{name}.zero": zero}


def _levels(weight: np.ndarray, reduced: int) -> tuple[np.ndarray, np.ndarray]:
    """Float [K, N] -> S8 [K, N] and float scale, [1, N] or [K, 1] as axis 0 or 1 is reduced."""
    scale = np.abs(weight).max(axis=reduced, keepdims=True) / np.float32(_WEIGHT_LEVELS)
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    levels = np.rint(weight / scale).clip(-_WEIGHT_LEVELS, _WEIGHT_LEVELS).astype(np.int8)
    return levels, scale


def _scale_of(name: str, low: float, high: float) -> dict[str, np.ndarray]:
    scale = (high - low) / _LEVELS if high > low else 1.0
    zero = np.clip(np.rint(-low / scale), 0, _LEVELS)
    return {f"{name}.scale": np.float32(scale), f"{name}.zero": zero.astype(np.uint8)}


def _static(node: NodeProto, first: bool) -> list[NodeProto]:
    """Quantises the inputs of a float product and converts them back; the runtime turns that into
    one INT8 kernel."""
    value, weight = node.input
    made = []
    if first:
        steps = [f"{value}.scale", f"{value}.zero"]
        made = [
            _node("QuantizeLinear", [value, *steps], f"{value}.uint8"),
            _node("DequantizeLinear", [f"{value}.uint8", *steps], f"{value}.rounded"),
        ]
    parts = [f"{weight}.int8", f"{weight}.scale", f"{weight}.zero"]
    return [
        *made,
        _node("DequantizeLinear", parts, f"{weight}.rounded", axis=1),
        helper.make_node(
            "MatMul", [f"{value}.rounded", f"{weight}.rounded"], node.output, node.name
        ),
    ]


def dynamic(node: NodeProto, first: bool) -> list[NodeProto]:
    """The pattern that the runtime fuses: an integer product, scaled back."""
    value, weight = node.input
    measured = [f"{value}.uint8", f"{value}.scale", f"{value}.zero"]
    made = []
    if first:
        name = f"{measured[0]}.DynamicQuantizeLinear"
        made = [helper.make_node("DynamicQuantizeLinear", [value], measured, name)]
    out = node.output[0]
    operands = [measured[0], f"{weight}.int8", measured[2], f"{weight}.zero"]
    return [
        *made,
        _node("MatMulInteger", operands, f"{out}.int32"),
        _node("Cast", [f"{out}.int32"], f"{out}.float", to=TensorProto.FLOAT),
        _node("Mul", [measured[1], f"{weight}.scale"], f"{out}.scale"),
        helper.make_node("Mul", [f"{out}.float", f"{out}.scale"], [out], node.name),
    ]


def _rows(node: NodeProto) -> list[NodeProto]:
    """Rows [B, L, C] of S8 and their scales [B, L, 1], which hold a table in a quarter of it."""
    (table, ids), out = node.input, node.output[0]
    return [
        _node("Gather", [f"{table}.int8", ids], f"{out}.int8"),
        _node("Gather", [f"{table}.scale", ids], f"{out}.scale"),
        _node("Cast", [f"{out}.int8"], f"{out}.float", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{out}.float", f"{out}.scale"], [out], node.name),
    ]


def _node(kind: str, inputs: list[str], output: str, **attributes: int) -> NodeProto:
    return helper.make_node(kind, inputs, [output], f"{output}.{kind}", **attributes)
