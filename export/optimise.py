"""Clean-up of paddle2onnx's graphs: constants are folded, no-ops and repetitions removed, attention
fused. Each pass changes a graph in place and keeps its results."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper

from .attention import fuse_attention
from .onnx_graph import OnnxGraph, without_weights

_MAX_FOLDED = 1 << 20
"""Folding creates no constant with more elements than this, because a large constant saves
nothing."""
_MAX_SHARED = 16

OPERATORS = ("onnxruntime", "onnx")
"""`onnx`: those of the standard alone, for runtimes that do not know ONNX Runtime's own."""


def optimise(graph: OnnxGraph, operators: str = "onnxruntime") -> None:
    """All passes, until nothing changes. `operators` is one of OPERATORS."""
    before: list[bytes] = []
    while before != (now := [node.SerializeToString() for node in graph.nodes]):
        before = now
        remove_no_ops(graph)
        simplify_where(graph)
        keep_integers(graph)
        fold_constants(graph)
        share_repeated(graph)
        graph.remove_unused()
    if operators == "onnxruntime":
        fuse_attention(graph)
        graph.remove_unused()


def remove_no_ops(graph: OnnxGraph) -> None:
    """Identity, x + 0 and x * 1 (what Paddle's `scale` becomes), casts to the type at hand."""
    same: dict[str, str] = {}
    kept = []
    for node in graph.nodes:
        source = _no_op_source(graph, node)
        if source is None:
            kept.append(node)
        else:
            same[node.output[0]] = source
    graph.nodes = kept
    graph.replace(same)


def _no_op_source(graph: OnnxGraph, node: NodeProto) -> str | None:
    """The input that a node passes on unchanged, None when it does something."""
    first = node.input[0] if node.input else ""
    if node.op_type == "Identity":
        return first
    if node.op_type == "Cast":
        known = graph.types.get(first)
        return first if known is not None and known[0] == node.attribute[0].i else None
    neutral = {"Add": 0, "Mul": 1}.get(node.op_type)
    if neutral is None:
        return None
    for value, other in (node.input, reversed(node.input)):
        constant = graph.constants.get(other)
        if constant is None or constant.size != 1 or constant.item() != neutral:
            continue
        rank = graph.types.get(value, (0, None))[1]
        # A constant with more dimensions would give the value more dimensions.
        if constant.ndim == 0 or (rank is not None and rank >= constant.ndim):
            return value
    return None


def simplify_where(graph: OnnxGraph) -> None:
    """Removes the zeros that Paddle adds to all three inputs of Where to broadcast them, for which
    it turns the condition into numbers and back. Where broadcasts by itself."""
    made = graph.producers()

    def made_by(name: str, kind: str) -> NodeProto | None:
        node = made.get(name)
        return node if node is not None and node.op_type == kind else None

    def is_zero(name: str) -> bool:
        node, constant = made.get(name), graph.constants.get(name)
        if constant is not None:
            return constant.dtype.kind in "bif" and not constant.any()
        if node is None or node.op_type not in ("Add", "Cast", "Expand"):
            return False
        return all(is_zero(part) for part in node.input[: 2 if node.op_type == "Add" else 1])

    for node in graph.nodes:
        if node.op_type != "Where":
            continue
        truth = made_by(node.input[0], "Cast")
        sums = [
            made_by(name, "Add")
            for name in ("" if truth is None else truth.input[0], *node.input[1:])
        ]
        condition, first, second = sums
        if condition is None or first is None or second is None:
            continue
        number = made_by(condition.input[0], "Cast")
        same = condition.input[1] == first.input[1] == second.input[1]
        if number is None or not same or not is_zero(first.input[1]):
            continue
        if graph.types.get(number.input[0], (0,))[0] == TensorProto.BOOL:
            node.input[:] = [number.input[0], first.input[0], second.input[0]]


def keep_integers(graph: OnnxGraph) -> None:
    """Computes sums, products, limits and floor divisions of int64 as such. The exporter computes
    them in float32, which is wrong above 2^24."""
    made, nodes = graph.producers(), []
    for node in graph.nodes:
        rewritten = [node]
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.INT64:
            inner = made.get(node.input[0])
            floor = inner is not None and inner.op_type == "Floor"
            inner = made.get(inner.input[0]) if inner is not None and floor else inner
            kinds = ("Div",) if floor else ("Add", "Mul", "Clip")
            if inner is not None and inner.op_type in kinds:
                arguments = [_as_integer(graph, made, name) for name in inner.input]
                if all(name is not None for name in arguments):
                    rewritten = _integer_nodes(inner.op_type, arguments, node.output[0])
        nodes += rewritten
    graph.nodes = nodes


def _integer_nodes(kind: str, arguments: list[str | None], output: str) -> list[NodeProto]:
    if kind != "Div":
        return [helper.make_node(kind, arguments, [output])]
    # ONNX divides towards zero. A number without its remainder divides exactly.
    first, second = arguments
    rest, whole = f"{output}.remainder", f"{output}.whole"
    return [
        helper.make_node("Mod", [first, second], [rest]),
        helper.make_node("Sub", [first, rest], [whole]),
        helper.make_node("Div", [whole, second], [output]),
    ]


def _as_integer(graph: OnnxGraph, made: dict[str, NodeProto], name: str) -> str | None:
    """The int64 value that a float one was cast from, or a constant of whole numbers as such."""
    value = graph.constants.get(name)
    if value is not None:
        if value.dtype.kind != "f" or not np.all(np.isfinite(value)) or np.any(value % 1):
            return None
        graph.constants[f"{name}.int64"] = value.astype(np.int64)
        return f"{name}.int64"
    node = made.get(name)
    if not name or node is None:
        return "" if not name else None
    known = graph.types.get(node.input[0], (0,))[0] if node.op_type == "Cast" else 0
    return node.input[0] if known == TensorProto.INT64 else None


def fold_constants(graph: OnnxGraph) -> None:
    """Replaces nodes that depend on constants only by their results, which the same runtime
    computes now."""
    constant = {""} | graph.constants.keys()
    foldable, rest = [], []
    for node in graph.nodes:
        if constant.issuperset(node.input):
            foldable.append(node)
            constant.update(node.output)
        else:
            rest.append(node)
    if not foldable:
        return
    needed = {name for node in rest for name in node.input} | graph.outputs.keys()
    names = [name for node in foldable for name in node.output if name in needed]
    part = OnnxGraph(
        foldable,
        graph.constants,
        [],
        {name: helper.make_empty_tensor_value_info(name) for name in names},
        graph.opset,
    )
    part.remove_unused()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        part.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = dict(zip(names, session.run(names, {}), strict=True))
    # A result that is too large stays a node, with all nodes that lead to it.
    folded = {name: value for name, value in values.items() if value.size <= _MAX_FOLDED}
    graph.constants.update(folded)
    graph.nodes = [node for node in graph.nodes if not folded.keys() & set(node.output)]


def share_repeated(graph: OnnxGraph) -> None:
    """Joins equal nodes, so that each result is computed once, and equal constants."""
    same: dict[str, str] = {}
    first_constant: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    for name, value in graph.constants.items():
        # Only small constants: a layer's weights keep their own name, even if they equal others.
        if value.size <= _MAX_SHARED:
            key = (str(value.dtype), value.shape, value.tobytes())
            found = first_constant.setdefault(key, name)
            if found != name:
                same[name] = found
    first_node: dict[bytes, NodeProto] = {}
    kept = []
    for node in graph.nodes:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
        bare = NodeProto()
        bare.CopyFrom(node)
        bare.ClearField("output")
        bare.ClearField("name")
        first = first_node.setdefault(bare.SerializeToString(deterministic=True), node)
        if first is node:
            kept.append(node)
        else:
            same.update(zip(node.output, first.output, strict=True))
    graph.nodes = kept
    graph.replace(same)


def finish(graph: OnnxGraph, prefix: str, weights: dict[str, str]) -> None:
    """Gives everything a name that does not depend on the tracing.

    `weights` maps the tracer's names of parameters to the checkpoint's. Values, other constants
    and nodes are numbered; a node that applies a weight carries the weight's name, and a number too
    where another node applies the same weight."""
    taken: set[str] = set()
    names = {item.name: item.name for item in graph.inputs}
    names |= {name: info.name for name, info in graph.outputs.items()}
    for name in graph.constants:
        names[name] = weights.get(name, f"{prefix}.constant_{len(names)}")
    for number, node in enumerate(graph.nodes):
        label = next((names[i] for i in node.input if i in weights), None)
        name = f"{prefix}.{label or number}.{node.op_type}"
        node.name = f"{name}_{number}" if name in taken else name
        taken.add(node.name)
        for place, name in enumerate(node.output):
            names.setdefault(name, f"{prefix}.value_{number}_{place}" if name else "")
        for place, name in enumerate(node.input):
            node.input[place] = names[name] if name else ""
        for place, name in enumerate(node.output):
            node.output[place] = names[name]
        node.ClearField("doc_string")
    graph.constants = {names[name]: value for name, value in graph.constants.items()}
    graph.outputs = {info.name: info for info in graph.outputs.values()}
    graph.types = {}


def set_shapes(graph: OnnxGraph, shapes: dict[str, list[int | str]]) -> None:
    """Names the dynamic dimensions of inputs and outputs."""
    for info in (*graph.inputs, *graph.outputs.values()):
        element = info.type.tensor_type.elem_type or TensorProto.FLOAT
        info.CopyFrom(helper.make_tensor_value_info(info.name, element, shapes[info.name]))


def check(model: onnx.ModelProto) -> None:
    """Runs ONNX's checker and its shape inference, both in their strictest mode.

    Raises: onnx.checker.ValidationError, onnx.shape_inference.InferenceError."""
    bare = without_weights(model)
    onnx.checker.check_model(bare, full_check=True)
    onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
