"""The decoder as one graph, from the checkpoint's parameters: embeddings and the KV cache in,
logits of the last position and the longer cache out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto, helper

from paddle_recomp.bundle.contract import CACHE_KINDS, PAST, PRESENT
from paddle_recomp.checkpoint import Checkpoint, LanguageModelSpec

from ..convert import OPSET
from .external import external_data
from .products import GraphWriter, Matrix, Precision, Product, Tensors
from .rope import rope_tables

_HEAD_MULTIPLE = 16
"""GroupQueryAttention needs a head whose width is a multiple of this."""
ROPE = ("rope.cos", "rope.sin")
"""The names of the tables of rotary positions."""
_MICROSOFT = "com.microsoft"


class _Builder:
    """Writes the nodes from the embeddings to the logits, and every weight on the way."""

    def __init__(self, checkpoint: Checkpoint, graph: GraphWriter, precision: Precision) -> None:
        self.checkpoint, self.spec = checkpoint, checkpoint.spec.language
        self.graph, self.precision = graph, precision
        self.width = head_width(self.spec)

    def parameter(self, name: str) -> np.ndarray:
        return self.checkpoint.parameter("language_model", name)

    def vector(self, name: str, *parts: np.ndarray) -> str:
        """Stores a parameter, or the given parts of one behind each other, as float32."""
        numbers = np.concatenate(parts) if parts else self.parameter(name)
        return self.graph.data.add(name, numbers.astype(np.float32))

    def linear(
        self,
        product: Product,
        value: str,
        output: str,
        weights: Sequence[np.ndarray],
        biases: Sequence[np.ndarray],
    ) -> str:
        """A product with one weight, or with several on top of each other, and its bias."""
        weight = Matrix(f"{output}.weight", tuple(weights))
        if not biases:
            return product(self.graph, value, weight, output)
        plain = product(self.graph, value, weight, f"{output}.product")
        return self.graph.node("Add", [plain, self.vector(f"{output}.bias", *biases)], output)

    def layer(self, product: Product, value: str, name: str, bias: bool) -> str:
        """A linear layer of the checkpoint as it is."""
        biases = [self.parameter(f"{name}.bias")] if bias else []
        return self.linear(product, value, name, [self.parameter(f"{name}.weight")], biases)

    def padded(self, array: np.ndarray) -> np.ndarray:
        """Rows of heads, [heads · head_dim, …], with zero rows behind each half of a head."""
        half, wide = self.spec.head_dim // 2, self.width // 2
        if half == wide:
            return array
        halves = array.reshape(-1, half, *array.shape[1:])
        missing = [(0, 0), (0, wide - half), *[(0, 0)] * (array.ndim - 1)]
        return np.pad(halves, missing).reshape(-1, *array.shape[1:])

    def positions(self) -> None:
        """The inputs of GroupQueryAttention, from the lengths before and of this call. Each prompt
        is declared to grow by all positions of this call: later calls overwrite its padding in the
        cache before anything reads it."""
        add, node = self.graph.data.add, self.graph.node
        one = add("one", np.array([1], dtype=np.int32))
        node("Shape", ["inputs_embeds"], "positions.int64", start=1, end=2)
        node("Cast", ["positions.int64"], "positions", to=TensorProto.INT32)
        node("Sub", ["positions", one], "positions.last")
        node("Add", ["past_lengths", "positions.last"], "last_positions")
        node("ReduceMax", ["last_positions"], "longest", keepdims=0)
        node("Squeeze", [one], "one.scalar")
        node("Add", ["longest", "one.scalar"], "total_positions")
        node("Sub", ["lengths", one], "last")
        axes = add("axes", np.array([1, 2], dtype=np.int64))
        node("Cast", ["last"], "last.int64", to=TensorProto.INT64)
        node("Unsqueeze", ["last.int64", axes], "last.index")

    def first_norm(self, value: str, weight: str, output: str) -> str:
        """RMS normalisation in plain operations, which the runtime fuses, because opset 17 has no
        operator for it."""
        add, node = self.graph.data.add, self.graph.node
        node("Pow", [value, add("two", np.array(2, np.float32))], f"{output}.squares")
        node("ReduceMean", [f"{output}.squares"], f"{output}.mean", axes=[-1], keepdims=1)
        epsilon = add("epsilon", np.array(self.spec.rms_norm_eps, np.float32))
        node("Add", [f"{output}.mean", epsilon], f"{output}.variance")
        node("Sqrt", [f"{output}.variance"], f"{output}.deviation")
        node("Div", [value, f"{output}.deviation"], f"{output}.normal")
        return node("Mul", [f"{output}.normal", self.vector(weight)], output)

    def add_and_norm(self, value: str, residual: str, weight: str, output: str) -> tuple[str, str]:
        """The normalised sum of both, and the sum itself."""
        total = f"{output}.sum"
        self.graph.node(
            "SkipSimplifiedLayerNormalization",
            [value, residual, self.vector(weight)],
            [output, "", "", total],
            _MICROSOFT,
            epsilon=self.spec.rms_norm_eps,
        )
        return output, total

    def attention(self, number: int, value: str) -> str:
        spec, layer = self.spec, f"layers.{number}.self_attn"

        def read(kind: str) -> list[np.ndarray]:
            return [self.padded(self.parameter(f"{layer}.{part}_proj.{kind}")) for part in "qkv"]

        biases = read("bias") if spec.qkv_bias else []
        packed = self.linear(
            self.precision.layers, value, f"{layer}.qkv_proj", read("weight"), biases
        )
        past, present = (
            [name.format(layer=number, kind=kind) for kind in CACHE_KINDS]
            for name in (PAST, PRESENT)
        )
        window = {} if spec.sliding_window is None else {"local_window_size": spec.sliding_window}
        return self.graph.node(
            "GroupQueryAttention",
            [packed, "", "", *past, "last_positions", "total_positions", *ROPE],
            [f"{layer}.heads", *present],
            _MICROSOFT,
            num_heads=spec.num_heads,
            kv_num_heads=spec.num_kv_heads,
            do_rotary=1,
            scale=1 / math.sqrt(spec.head_dim),
            **window,
        )

    def output(self, number: int, value: str) -> str:
        """Attention's output projection, whose columns are heads."""
        name = f"layers.{number}.self_attn.o_proj"
        weight = self.padded(self.parameter(f"{name}.weight").T).T
        biases = [self.parameter(f"{name}.bias")] if self.spec.output_bias else []
        return self.linear(self.precision.layers, value, name, [weight], biases)

    def mlp(self, number: int, value: str) -> str:
        layer, bias, node = f"layers.{number}.mlp", self.spec.mlp_bias, self.graph.node
        gate = self.layer(self.precision.layers, value, f"{layer}.gate_proj", bias)
        up = self.layer(self.precision.layers, value, f"{layer}.up_proj", bias)
        # x · sigmoid(x), which the runtime offers under the name of its approximation of GELU.
        node("QuickGelu", [gate], f"{layer}.silu", _MICROSOFT, alpha=1.0)
        node("Mul", [f"{layer}.silu", up], f"{layer}.gated")
        return self.layer(self.precision.down, f"{layer}.gated", f"{layer}.down_proj", bias)

    def build(self) -> None:
        """Writes the whole graph."""
        spec, graph = self.spec, self.graph
        self.positions()
        for name, table in zip(ROPE, rope_tables(spec, self.width), strict=True):
            graph.data.add(name, table)
        residual = "inputs_embeds"
        value = self.first_norm(
            residual, "layers.0.input_layernorm.weight", "layers.0.input_layernorm"
        )
        for number in range(spec.num_layers):
            layer, last = f"layers.{number}", number == spec.num_layers - 1
            heads = self.attention(number, value)
            if last:
                # Only the logits behind the last position are wanted, and the cache is complete.
                heads, residual = self.last_only(heads), self.last_only(residual)
            value, residual = self.add_and_norm(
                self.output(number, heads),
                residual,
                f"{layer}.post_attention_layernorm.weight",
                f"{layer}.post_attention_layernorm",
            )
            name = "norm" if last else f"layers.{number + 1}.input_layernorm"
            value, residual = self.add_and_norm(
                self.mlp(number, value), residual, f"{name}.weight", name
            )
        head = "embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
        weight = Matrix("lm_head.weight", (self.parameter(head),))
        self.precision.head(graph, value, weight, "lm_head")
        graph.node(
            "Squeeze", ["lm_head", graph.data.add("axis", np.array([1], np.int64))], "logits"
        )

    def last_only(self, value: str) -> str:
        """[B, T, …] -> [B, 1, …], the last real position of each prompt."""
        return self.graph.node("GatherND", [value, "last.index"], f"{value}.last", batch_dims=1)


def head_width(spec: LanguageModelSpec) -> int:
    """The width of a head in the cache: head_dim, rounded up to a width that the runtime
    supports."""
    return -(-spec.head_dim // _HEAD_MULTIPLE) * _HEAD_MULTIPLE


def decoder_inputs(spec: LanguageModelSpec) -> dict[str, tuple[str, list[int | str]]]:
    """Element type and shape by name."""
    cache: list[int | str] = ["batch", spec.num_kv_heads, "capacity", head_width(spec)]
    return {
        "inputs_embeds": ("float32", ["batch", "positions", spec.hidden_size]),
        "lengths": ("int32", ["batch"]),
        "past_lengths": ("int32", ["batch"]),
        **{
            PAST.format(layer=layer, kind=kind): ("float32", cache)
            for layer in range(spec.num_layers)
            for kind in CACHE_KINDS
        },
    }


def decoder_outputs(spec: LanguageModelSpec) -> dict[str, tuple[str, list[int | str]]]:
    """Element type and shape by name."""
    cache: list[int | str] = ["batch", spec.num_kv_heads, "capacity", head_width(spec)]
    return {
        "logits": ("float32", ["batch", spec.vocab_size]),
        **{
            PRESENT.format(layer=layer, kind=kind): ("float32", cache)
            for layer in range(spec.num_layers)
            for kind in CACHE_KINDS
        },
    }


def build_graph(
    checkpoint: Checkpoint, precision: Precision, tensors: Tensors
) -> list[onnx.NodeProto]:
    """The nodes of the graph; `tensors` is given every tensor, one at a time."""
    graph = GraphWriter(tensors)
    _Builder(checkpoint, graph, precision).build()
    return graph.nodes


def write_graph(
    checkpoint: Checkpoint,
    path: Path,
    precision: Precision,
    metadata: Mapping[str, str],
) -> None:
    """Writes the graph, and its weights into NAME.data beside it, reading one parameter at a
    time."""
    spec = checkpoint.spec.language
    with external_data(path.with_name(f"{path.name}.data")) as data:
        nodes = build_graph(checkpoint, precision, data)
    proto = helper.make_graph(
        nodes,
        "recomp",
        [_value(name, *about) for name, about in decoder_inputs(spec).items()],
        [_value(name, *about) for name, about in decoder_outputs(spec).items()],
        data.tensors,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_MICROSOFT, 1)]
    model = helper.make_model(
        proto, opset_imports=opsets, ir_version=8, producer_name="paddle_recomp"
    )
    helper.set_model_props(model, dict(sorted(metadata.items())))
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)


def _value(name: str, dtype: str, shape: list[int | str]) -> ValueInfoProto:
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
    )
