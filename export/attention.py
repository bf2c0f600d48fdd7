"""Attention as one node: com.microsoft MultiHeadAttention.

ONNX Runtime's own fusions look for the node patterns of other exporters and find none here."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import NodeProto, helper

from .onnx_graph import OnnxGraph


class Attention(NamedTuple):
    """The attention that was recognised around a Softmax: [B, N, C] in, [B, N, C] out."""

    query: str
    key: str
    value: str
    mask: np.ndarray | None
    heads: int
    scale: float
    output: str


def fuse_attention(graph: OnnxGraph) -> int:
    """Replaces each softmax(q kᵀ) v over heads by one node and returns how many there were.

    The projections before it and behind it stay. So do q and k where another node reads them, as
    for the class token's attention that scores the patches."""
    found = {}
    for node in graph.nodes:
        if node.op_type == "Softmax" and (attention := _recognise(graph, node)) is not None:
            found[attention.output] = attention
    nodes = []
    for node in graph.nodes:
        attention = found.get(node.output[0]) if node.output else None
        nodes.append(node if attention is None else _fused(graph, attention))
    graph.nodes = nodes
    return len(found)


def _fused(graph: OnnxGraph, attention: Attention) -> NodeProto:
    inputs = [attention.query, attention.key, attention.value]
    if attention.mask is not None:
        name = f"{attention.output}.mask"
        missing = 4 - attention.mask.ndim
        graph.constants[name] = np.expand_dims(attention.mask, tuple(range(missing)))
        inputs += ["", "", name]
    return helper.make_node(
        "MultiHeadAttention",
        inputs,
        [attention.output],
        domain="com.microsoft",
        num_heads=attention.heads,
        scale=attention.scale,
    )


def _recognise(graph: OnnxGraph, softmax: NodeProto) -> Attention | None:
    """The attention around a Softmax; None when its neighbours are not attention over heads."""
    made, uses = graph.producers(), graph.uses()
    readers: dict[str, NodeProto] = {name: node for node in graph.nodes for name in node.input}

    def only_reader(name: str, kind: str) -> NodeProto | None:
        node = readers.get(name)
        return node if node is not None and node.op_type == kind and uses[name] == 1 else None

    axis = [item.i for item in softmax.attribute if item.name == "axis"]
    if axis not in ([], [-1], [3]):
        return None
    logits, mask = made.get(softmax.input[0]), None
    if logits is not None and logits.op_type == "Add":
        mask = graph.constants.get(logits.input[1])
        logits = made.get(logits.input[0]) if mask is not None else None
    mix = only_reader(softmax.output[0], "MatMul")
    turned = None if mix is None else only_reader(mix.output[0], "Transpose")
    joined = None if turned is None else only_reader(turned.output[0], "Reshape")
    if logits is None or logits.op_type != "MatMul" or mix is None or joined is None:
        return None
    if turned is None or _order(turned) != [0, 2, 1, 3]:
        return None
    left, scale = _without_scale(graph, made, logits.input[0])
    query = _heads(graph, made, left)
    key = _heads(graph, made, _transposed(made, logits.input[1]))
    value = _heads(graph, made, mix.input[1])
    if query is None or key is None or value is None:
        return None
    if not query[1:] == key[1:] == value[1:]:
        return None
    return Attention(query[0], key[0], value[0], mask, query[1], scale, joined.output[0])


def _order(node: NodeProto) -> list[int]:
    return list(helper.get_node_attr_value(node, "perm"))


def _without_scale(graph: OnnxGraph, made: dict[str, NodeProto], name: str) -> tuple[str, float]:
    """The value in front of a multiplication by a constant, and the constant."""
    node = made.get(name)
    if node is not None and node.op_type == "Mul":
        for value, other in (node.input, reversed(node.input)):
            constant = graph.constants.get(other)
            if constant is not None and constant.size == 1:
                return value, float(constant.item())
    return name, 1.0


def _transposed(made: dict[str, NodeProto], name: str) -> str:
    """The value behind a swap of the last two axes; without a swap, a value that `_heads` does not
    accept."""
    node = made.get(name)
    if node is not None and node.op_type == "Transpose" and _order(node) == [0, 1, 3, 2]:
        return node.input[0]
    return ""


def _heads(graph: OnnxGraph, made: dict[str, NodeProto], name: str) -> tuple[str, int, int] | None:
    """The [B, N, C] value that was split into [B, heads, N, width], with heads and width."""
    turn = made.get(name)
    if turn is None or turn.op_type != "Transpose" or _order(turn) != [0, 2, 1, 3]:
        return None
    split = made.get(turn.input[0])
    if split is None or split.op_type != "Reshape":
        return None
    shape = graph.constants.get(split.input[1])
    if shape is None or len(shape) != 4 or shape[2] < 1 or shape[3] < 1:
        return None
    return split.input[0], int(shape[2]), int(shape[3])
