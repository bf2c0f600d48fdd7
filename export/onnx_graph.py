"""An ONNX graph as plain Python data that passes can rewrite."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto, ValueInfoProto, helper, numpy_helper

from .errors import ExportError

_SMALL = 1024
"""Elements of a constant that may be a shape, a limit or a list of axes."""


@dataclass
class OnnxGraph:
    """Nodes in topological order, constants by name, and the two ends."""

    nodes: list[NodeProto]
    constants: dict[str, np.ndarray]
    inputs: list[ValueInfoProto]
    outputs: dict[str, ValueInfoProto]
    """The value that each output is, with the output's name and shape."""
    opset: int
    types: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    """Element type and rank (None: unknown) of the values whose type is known."""

    @classmethod
    def read(cls, model: onnx.ModelProto, outputs: Iterable[str]) -> OnnxGraph:
        """`outputs` are the names that the graph's outputs get, in order; the graph may have
        more, which are dropped.

        Raises: ExportError when it has fewer, or when a node reads a value that does not exist."""
        graph, names = model.graph, list(outputs)
        if len(graph.output) < len(names):
            raise ExportError(f"the graph has {len(graph.output)} outputs; expected {len(names)}")
        constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        nodes = []
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            else:
                nodes.append(node)
        known = {"", *constants, *(item.name for item in graph.input)}
        known.update(name for node in nodes for name in node.output)
        if missing := {name for node in nodes for name in node.input} - known:
            raise ExportError(f"the graph lacks {min(missing)}: was the disk full?")
        ends = {}
        for name, value in zip(names, graph.output, strict=False):
            info = ValueInfoProto()
            info.CopyFrom(value)
            info.name = name
            ends[value.name] = info
        (opset,) = (item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
        return cls(nodes, constants, list(graph.input), ends, opset, _value_types(model))

    def model(self, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
        """The graph as a file's content: the same graph gives the same bytes."""
        graph = helper.make_graph(
            self.nodes,
            "recomp",
            self.inputs,
            list(self.outputs.values()),
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        domains = sorted({node.domain for node in self.nodes} - {"", "ai.onnx"})
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in domains]
        # IR version 8 came with opset 17; older runtimes refuse a newer one.
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=8, producer_name="paddle_recomp"
        )
        helper.set_model_props(model, dict(sorted((metadata or {}).items())))
        return model

    def producers(self) -> dict[str, NodeProto]:
        """The node that makes each value."""
        return {name: node for node in self.nodes for name in node.output}

    def uses(self) -> Counter[str]:
        """How often each value is read, the graph's outputs included."""
        uses = Counter(name for node in self.nodes for name in node.input)
        uses.update(list(self.outputs))
        return uses

    def histogram(self) -> dict[str, int]:
        """How many nodes there are of each kind, the most frequent first."""
        return dict(Counter(node.op_type for node in self.nodes).most_common())

    def replace(self, names: Mapping[str, str]) -> None:
        """Lets every reader of a value read another one instead."""

        def final(name: str) -> str:
            while name in names:
                name = names[name]
            return name

        for node in self.nodes:
            for place, name in enumerate(node.input):
                node.input[place] = final(name)
        self.outputs = self._unique_outputs(final)

    def remove_unused(self) -> None:
        """Drops nodes and constants that nothing reads."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {k: v for k, v in self.constants.items() if k in needed}

    def _unique_outputs(self, final: Callable[[str], str]) -> dict[str, ValueInfoProto]:
        """Two outputs may turn out to be one value, which needs a copy to have two names."""
        outputs: dict[str, ValueInfoProto] = {}
        sources = self.constants.keys() | {item.name for item in self.inputs}
        for old, info in self.outputs.items():
            name = final(old)
            if name in outputs or name in sources:
                copy = f"{info.name}.copy"
                self.nodes.append(helper.make_node("Identity", [name], [copy]))
                name = copy
            outputs[name] = info
        return outputs


def node_bytes(node: NodeProto) -> bytes:
    """A node as bytes, which are equal where nodes are."""
    return node.SerializeToString(deterministic=True)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its large constants as inputs. ONNX's checker and its shape inference
    copy a model several times, and no shape depends on the values of a weight."""
    graph, small, large = model.graph, [], []
    for item in graph.initializer:
        if math.prod(item.dims) <= _SMALL:
            small.append(item)
        else:
            shape = list(item.dims)
            large.append(helper.make_tensor_value_info(item.name, item.data_type, shape))
    inputs = [*graph.input, *large]
    bare = helper.make_graph(graph.node, graph.name, inputs, graph.output, small)
    made = helper.make_model(bare, opset_imports=model.opset_import, ir_version=model.ir_version)
    made.metadata_props.extend(model.metadata_props)
    return made


def _value_types(model: onnx.ModelProto) -> dict[str, tuple[int, int | None]]:
    inferred = onnx.shape_inference.infer_shapes(without_weights(model), data_prop=True).graph
    types = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        tensor = value.type.tensor_type
        rank = len(tensor.shape.dim) if tensor.HasField("shape") else None
        types[value.name] = (tensor.elem_type, rank)
    return types
