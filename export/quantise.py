"""Linear layers in INT8: U8 activations of one scale, S8 weights of one scale per channel.

Only products with a weight change. Softmax and normalisations have ranges that eight bits lose,
and cost little. The first convolution reads raw pixels, has no INT8 kernel for its shape that is
worth an error at the very start, and is under a hundredth of the work. The compressor compares
scores that differ by less than a step of INT8; the projector, which is behind it, feeds the
language model directly."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import numpy as np
from onnx import NodeProto, TensorProto, helper

from export.calibration import Range
from export.onnx_graph import OnnxGraph

_LEVELS, _WEIGHT_LEVELS = 255, 127
"""Of U8 from its lowest number on; of S8 to each side, so that zero needs no offset."""
_SHARED_INPUT = re.compile(r"\.[qkv]_proj\.weight$")


def weight_nodes(graph: OnnxGraph) -> dict[str, NodeProto]:
    """The products that can become INT8, by the name of their weight [K, N]."""
    matrices = {name for name, value in graph.constants.items() if value.ndim == 2}
    return {
        node.input[1]: node
        for node in graph.nodes
        if node.op_type == "MatMul" and node.input[1] in matrices
    }


def layer_of(weight: str) -> str:
    """The group that a weight stays in float with: query, key and value read one input."""
    return _SHARED_INPUT.sub(".qkv_proj", weight).removesuffix(".weight")


def quantise(
    graph: OnnxGraph, weights: Collection[str], ranges: Mapping[str, Range] | None
) -> OnnxGraph:
    """A new graph in which the named weights are INT8. `ranges` holds those of their inputs; None
    measures them at run time, which makes a picture's scales depend on the rest of its batch."""
    nodes: list[NodeProto] = []
    constants, done = dict(graph.constants), set[str]()
    for node in graph.nodes:
        if node.op_type != "MatMul" or node.input[1] not in weights:
            nodes.append(node)
            continue
        value, weight = node.input
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
    scale = np.abs(weight).max(axis=0) / np.float32(_WEIGHT_LEVELS)
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    levels = np.rint(weight / scale).clip(-_WEIGHT_LEVELS, _WEIGHT_LEVELS).astype(np.int8)
    zero = np.zeros(len(scale), np.int8)
    return {f"{name}.int8": levels, f"{name}.scale": scale, f"{name}.zero": zero}


def _scale_of(name: str, low: float, high: float) -> dict[str, np.ndarray]:
    scale = (high - low) / _LEVELS if high > low else 1.0
    zero = np.clip(np.rint(-low / scale), 0, _LEVELS)
    return {f"{name}.scale": np.float32(scale), f"{name}.zero": zero.astype(np.uint8)}


def _static(node: NodeProto, first: bool) -> list[NodeProto]:
    """Quantised and back around a float product, which the runtime turns into one INT8 kernel."""
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


def _node(kind: str, inputs: list[str], output: str, **attributes: int) -> NodeProto:
    return helper.make_node(kind, inputs, [output], f"{output}.{kind}", **attributes)
