"""The rewriting of graphs, on small ones made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.attention import fuse_attention
from export.errors import ExportError
from export.onnx_graph import OnnxGraph
from export.optimise import finish, fold_constants, optimise, remove_no_ops, share_repeated


def graph_of(
    nodes: Sequence[NodeProto], outputs: Sequence[str], *, rank: int = 2, **constants: Any
) -> OnnxGraph:
    """A graph whose input x is a float array of some rank."""
    shape = [f"d{i}" for i in range(rank)]
    made = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    return OnnxGraph.read(model, [f"out_{name}" for name in outputs])


def run(graph: OnnxGraph, x: np.ndarray) -> list[np.ndarray]:
    """The outputs, in their order; the graph gets its final names."""
    finish(graph, "test", {})
    session = onnxruntime.InferenceSession(
        graph.model().SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return [np.asarray(value) for value in session.run(list(graph.outputs), {"x": x})]


def node(kind: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def test_no_ops_go_and_lookalikes_stay() -> None:
    zero, one = np.float32(0), np.float32(1)
    nodes = [
        node("Add", "x zero", "a"),
        node("Mul", "one a", "b"),
        node("Identity", "b", "c"),
        node("Cast", "c", "d", to=TensorProto.FLOAT),
        node("Mul", "d zero", "e"),
        node("Add", "e one", "f"),
        node("Add", "f deep", "g"),
    ]
    graph = graph_of(nodes, ["g"], zero=zero, one=one, deep=np.zeros((1, 1, 1), np.float32))
    remove_no_ops(graph)
    kinds = [n.op_type for n in graph.nodes]
    assert kinds == ["Mul", "Add", "Add"], "x · 0, y + 1, and a 0 that adds a dimension"
    np.testing.assert_array_equal(run(graph, np.ones((2, 3), np.float32))[0], np.ones((1, 2, 3)))


def test_two_outputs_that_are_one_value_keep_their_names() -> None:
    nodes = [node("Relu", "x", "a"), node("Identity", "a", "b"), node("Identity", "x", "c")]
    graph = graph_of(nodes, ["a", "b", "c"])
    optimise(graph)
    assert [info.name for info in graph.outputs.values()] == ["out_a", "out_b", "out_c"]
    x = np.array([[-1.0, 2.0]], np.float32)
    first, second, third = run(graph, x)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(third, x)


def test_constants_are_folded_to_what_the_runtime_computes() -> None:
    nodes = [
        node("Range", "start stop step", "r"),
        node("Cast", "r", "f", to=TensorProto.FLOAT),
        node("Exp", "f", "e"),
        node("Add", "x e", "y"),
    ]
    graph = graph_of(nodes, ["y"], start=np.int64(0), stop=np.int64(4), step=np.int64(1))
    fold_constants(graph)
    graph.remove_unused()
    assert graph.histogram() == {"Add": 1}
    assert len(graph.constants) == 1
    (found,) = run(graph, np.zeros((1, 4), np.float32))
    np.testing.assert_allclose(found, np.exp([[0, 1, 2, 3]]), rtol=1e-6)


def where_nodes(zeros_of_second: str) -> list[NodeProto]:
    """x where x > limit, else other; written as Paddle does when the shapes are not the same."""
    return [
        node("Greater", "x limit", "condition"),
        node("Shape", "x", "shape"),
        node("Expand", "zero shape", "zeros"),
        node("Cast", "condition", "number", to=TensorProto.FLOAT),
        node("Add", "number zeros", "spread"),
        node("Cast", "spread", "truth", to=TensorProto.BOOL),
        node("Add", "x zeros", "first"),
        node("Add", f"other {zeros_of_second}", "second"),
        node("Where", "truth first second", "y"),
    ]


def test_where_broadcasts_by_itself() -> None:
    constants: dict[str, Any] = {
        "limit": np.float32(0),
        "zero": np.array([0], np.float32),
        "other": np.array([-7], np.float32),
        "ones": np.array([1], np.float32),
    }
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    graph = graph_of(where_nodes("zeros"), ["y"], **constants)
    optimise(graph)
    assert graph.histogram() == {"Greater": 1, "Where": 1}
    np.testing.assert_array_equal(run(graph, x)[0], np.where(x > 0, x, -7))
    graph = graph_of(where_nodes("ones"), ["y"], **constants)
    optimise(graph)
    np.testing.assert_array_equal(run(graph, x)[0], np.where(x > 0, x, -6))


def test_whole_numbers_stay_whole() -> None:
    large = 2**24 + 1
    nodes = [
        node("Cast", "x", "whole", to=TensorProto.INT64),
        node("Mul", "whole factor", "large"),
        node("Cast", "large", "float", to=TensorProto.FLOAT),
        node("Add", "float two", "sum"),
        node("Cast", "sum", "sum_whole", to=TensorProto.INT64),
        node("Cast", "sum_whole", "float_again", to=TensorProto.FLOAT),
        node("Mul", "float_again half", "scaled"),
        node("Cast", "scaled", "y", to=TensorProto.INT64),
    ]
    graph = graph_of(
        nodes, ["sum_whole", "y"], factor=np.int64(large), two=np.float32(2), half=np.float32(0.5)
    )
    optimise(graph)
    assert graph.histogram() == {"Cast": 3, "Mul": 2, "Add": 1}, "half is no whole number"
    assert run(graph, np.ones((1, 1), np.float32))[0].item() == large + 2


def test_floor_division_of_whole_numbers() -> None:
    nodes = [
        node("Cast", "x", "whole", to=TensorProto.INT64),
        node("Mul", "whole factor", "large"),
        node("Cast", "large", "float", to=TensorProto.FLOAT),
        node("Div", "float seven", "quotient"),
        node("Floor", "quotient", "floor"),
        node("Cast", "floor", "y", to=TensorProto.INT64),
    ]
    graph = graph_of(nodes, ["y"], factor=np.int64(2**24 + 3), seven=np.float32(7))
    optimise(graph)
    assert graph.histogram() == {"Cast": 1, "Mul": 1, "Mod": 1, "Sub": 1, "Div": 1}
    x = np.arange(-5, 6, dtype=np.float32).reshape(1, -1)
    expected = x.astype(np.int64) * (2**24 + 3) // 7
    np.testing.assert_array_equal(run(graph, x)[0], expected)


def test_repetitions_are_computed_once_and_weights_keep_their_names() -> None:
    weight = np.ones(32, np.float32)
    nodes = [
        node("Exp", "x", "a"),
        node("Exp", "x", "b"),
        node("Mul", "a small", "c"),
        node("Mul", "b also_small", "d"),
        node("Add", "c first", "e"),
        node("Add", "d second", "f"),
    ]
    small = np.float32(3)
    graph = graph_of(nodes, ["e", "f"], small=small, also_small=small, first=weight, second=weight)
    share_repeated(graph)
    graph.remove_unused()
    assert graph.histogram() == {"Add": 2, "Exp": 1, "Mul": 1}
    assert {"first", "second"} <= graph.constants.keys()


def test_an_incomplete_graph_is_an_error() -> None:
    graph = graph_of([node("Relu", "x", "a")], ["a"])
    with pytest.raises(ExportError, match="1 outputs; expected 2"):
        OnnxGraph.read(graph.model(), ["a", "b"])
    with pytest.raises(ExportError, match="lacks weight"):
        graph_of([node("Add", "x weight", "a")], ["a"])


def attention_graph(masked: bool, change: Callable[[list[NodeProto]], None]) -> OnnxGraph:
    """Self-attention with 2 heads of width 4 as the exporter writes it: q = k = v = x."""
    nodes = []
    for name in "qkv":
        nodes += [
            node("Reshape", "x split", f"{name}_split"),
            node("Transpose", f"{name}_split", f"{name}_heads", perm=[0, 2, 1, 3]),
        ]
    nodes += [
        node("Mul", "q_heads scale", "scaled"),
        node("Transpose", "k_heads", "k_turned", perm=[0, 1, 3, 2]),
        node("MatMul", "scaled k_turned", "logits"),
        *([node("Add", "logits mask", "masked")] if masked else []),
        node("Softmax", "masked" if masked else "logits", "weights", axis=-1),
        node("MatMul", "weights v_heads", "mixed"),
        node("Transpose", "mixed", "turned", perm=[0, 2, 1, 3]),
        node("Reshape", "turned join", "y"),
    ]
    change(nodes)
    mask = np.triu(np.full((5, 5), -np.inf, np.float32), 1)
    return graph_of(
        nodes,
        ["y"],
        rank=3,
        split=np.array([0, 0, 2, 4]),
        join=np.array([0, 0, 8]),
        scale=np.float32(0.3),
        mask=mask,
    )


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_fused_and_computes_the_same(masked: bool) -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
    plain, fused = (attention_graph(masked, lambda nodes: None) for _ in range(2))
    assert fuse_attention(fused) == 1
    fused.remove_unused()
    assert fused.histogram() == {"MultiHeadAttention": 1}
    np.testing.assert_allclose(run(fused, x)[0], run(plain, x)[0], atol=1e-6)


def other_order(nodes: list[NodeProto]) -> None:
    nodes[1].attribute[0].CopyFrom(helper.make_attribute("perm", [0, 2, 3, 1]))


def other_axis(nodes: list[NodeProto]) -> None:
    (softmax,) = (n for n in nodes if n.op_type == "Softmax")
    softmax.attribute[0].CopyFrom(helper.make_attribute("axis", 2))


def computed_mask(nodes: list[NodeProto]) -> None:
    (add,) = (n for n in nodes if n.op_type == "Add")
    add.input[1] = "late_mask"
    nodes.insert(0, node("Relu", "mask", "late_mask"))


def read_twice(nodes: list[NodeProto]) -> None:
    nodes.append(node("Relu", "weights", "also"))


@pytest.mark.parametrize("change", [other_order, other_axis, computed_mask])
def test_what_only_looks_like_attention_stays(change: Callable[[list[NodeProto]], None]) -> None:
    assert fuse_attention(attention_graph(True, change)) == 0


def test_weights_that_are_read_elsewhere_stay() -> None:
    assert fuse_attention(attention_graph(False, read_twice)) == 0
