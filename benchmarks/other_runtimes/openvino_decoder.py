"""The decoder in OpenVINO: as the ONNX graph of a bundle, and as a Llama of OpenVINO's own
operations with the cache as a state, which is the form that its CPU plugin has kernels for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from export.decoder.rope import rope_tables
from paddle_recomp.bundle import DecoderInfo
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.llm.onnx_decoder import cache_names

FILE = "openvino.xml"
MODES: dict[str, dict[str, Any]] = {
    "int8": {"mode": "INT8_SYM"},
    "int4": {"mode": "INT4_ASYM", "group_size": 128},
}
"""The options for nncf that come nearest to the decoder of a bundle. It keeps the output layer of
int4 in eight bits, too."""


class OpenVinoDecoder:
    """One prompt in the graph that `write_openvino` wrote. The runtime keeps the cache."""

    def __init__(self, path: Path, table: np.ndarray, hints: dict[str, Any]) -> None:
        self.request, self.table = _compiled(path, hints), table
        self.past = 0

    def prefill(self, embeds: np.ndarray) -> np.ndarray:
        """Embeddings [T, D] -> logits behind the last [V]."""
        self.request.reset_state()
        self.past = 0
        return self._run(embeds)

    def decode(self, token: int) -> np.ndarray:
        """One token more -> logits [V]."""
        return self._run(self.table[[token]].astype(np.float32))

    def _run(self, embeds: np.ndarray) -> np.ndarray:
        end = self.past + len(embeds)
        inputs = {
            "inputs_embeds": embeds[None],
            "positions": np.arange(self.past, end),
            "beam_idx": np.zeros(1, np.int32),
        }
        self.past = end
        return np.asarray(self.request.infer(inputs)["logits"]).reshape(-1)


class OnnxInOpenVino:
    """One prompt in a bundle's own graph, which returns the whole cache at each step."""

    def __init__(
        self, path: Path, table: np.ndarray, hints: dict[str, Any], info: DecoderInfo
    ) -> None:
        self.request, self.table = _compiled(path, hints), table
        self.names = list(cache_names(info))
        self.shape = (1, info.num_kv_heads, 0, info.cache_width)
        self.cache: dict[str, np.ndarray] = {}

    def prefill(self, embeds: np.ndarray) -> np.ndarray:
        """Embeddings [T, D] -> logits behind the last [V]."""
        self.cache = {name: np.zeros(self.shape, np.float32) for name, _ in self.names}
        return self._run(embeds)

    def decode(self, token: int) -> np.ndarray:
        """One token more -> logits [V]."""
        return self._run(self.table[[token]].astype(np.float32))

    def _run(self, embeds: np.ndarray) -> np.ndarray:
        past = next(iter(self.cache.values())).shape[2]
        lengths = {"lengths": len(embeds), "past_lengths": past}
        inputs = {name: np.array([value], np.int32) for name, value in lengths.items()}
        found = self.request.infer(
            {"inputs_embeds": embeds[None], **inputs, **self.cache}, share_inputs=True
        )
        self.cache = {before: found[after] for before, after in self.names}
        return np.asarray(found["logits"]).reshape(-1)


def _compiled(path: Path, hints: dict[str, Any]) -> Any:
    """A request of the graph, for one user."""
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", **hints}
    return openvino.Core().compile_model(path, "CPU", hints).create_infer_request()


def write_openvino(checkpoint: Checkpoint, folder: Path, precision: str) -> None:
    """Writes the graph with its weights compressed by nncf; fp32 leaves them as they are."""
    import nncf
    import openvino

    model = _Builder(checkpoint).build()
    if precision in MODES:
        wanted = dict(MODES[precision])
        mode = nncf.CompressWeightsMode[wanted.pop("mode")]
        model = nncf.compress_weights(model, mode=mode, **wanted)
    openvino.save_model(model, folder / FILE, compress_to_fp16=False)


class _Builder:
    """Llama from embeddings [B, T, D] to the logits behind the last position [B, 1, V]: one prompt,
    or several of one length."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        import openvino
        from openvino import opset13

        self.ops, self.openvino = opset13, openvino
        self.checkpoint, self.spec = checkpoint, checkpoint.spec.language
        self.sinks: list[Any] = []
        spec = self.spec
        if spec.sliding_window is not None or spec.qkv_bias or spec.output_bias or spec.mlp_bias:
            raise SystemExit("this benchmark builds a Llama without biases and windows")
        self.embeds = opset13.parameter(
            [-1, -1, spec.hidden_size], np.float32, name="inputs_embeds"
        )
        self.positions = opset13.parameter([-1], np.int64, name="positions")
        self.beams = opset13.parameter([-1], np.int32, name="beam_idx")

    def weight(self, name: str) -> Any:
        """The weight as in the checkpoint, widened where it is used."""
        stored = self.checkpoint.parameter("language_model", name)
        constant = self.ops.constant(np.ascontiguousarray(stored), name=name)
        return self.ops.convert(constant, "f32")

    def linear(self, value: Any, name: str) -> Any:
        return self.ops.matmul(value, self.weight(f"{name}.weight"), False, True)

    def norm(self, value: Any, name: str) -> Any:
        ops = self.ops
        squares = ops.power(value, ops.constant(np.float32(2)))
        mean = ops.reduce_mean(squares, ops.constant([-1]), keep_dims=True)
        spread = ops.sqrt(ops.add(mean, ops.constant(np.float32(self.spec.rms_norm_eps))))
        normal = ops.multiply(value, ops.divide(ops.constant(np.float32(1)), spread))
        numbers = self.checkpoint.parameter("language_model", f"{name}.weight")
        return ops.multiply(normal, ops.constant(numbers.astype(np.float32)))

    def heads(self, value: Any, count: int) -> Any:
        """[B, T, heads · d] -> [B, heads, T, d]."""
        shape = self.ops.constant([0, 0, count, self.spec.head_dim])
        split = self.ops.reshape(value, shape, special_zero=True)
        return self.ops.transpose(split, self.ops.constant([0, 2, 1, 3]))

    def turned(self, value: Any, cos: Any, sin: Any) -> Any:
        """Rotary positions; the halves of a head are a pair."""
        ops, half = self.ops, self.spec.head_dim // 2
        parts = ops.variadic_split(value, ops.constant(3), ops.constant([half, half]))
        minus = ops.multiply(parts.output(1), ops.constant(np.float32(-1)))
        swapped = ops.concat([minus, parts.output(0)], -1)
        return ops.add(ops.multiply(value, cos), ops.multiply(swapped, sin))

    def cached(self, value: Any, name: str) -> Any:
        """The new positions behind those of the state, [B, heads, S, d], which becomes longer."""
        ops, spec = self.ops, self.spec
        batch = ops.gather(ops.shape_of(self.embeds), ops.constant([0]), ops.constant(0))
        rest = ops.constant([spec.num_kv_heads, 0, spec.head_dim])
        empty = ops.broadcast(ops.constant(np.float32(0)), ops.concat([batch, rest], 0))
        shape = self.openvino.PartialShape([-1, spec.num_kv_heads, -1, spec.head_dim])
        past = ops.read_value(empty, name, self.openvino.Type.f32, shape)
        past = ops.gather(past, self.beams, ops.constant(0))
        whole = ops.concat([past, value], 2)
        self.sinks.append(ops.assign(whole, name))
        return whole

    def shared(self, value: Any) -> Any:
        """[B, kv_heads, S, d] -> [B, heads, S, d], each for a group of queries."""
        ops, spec = self.ops, self.spec
        groups = spec.num_heads // spec.num_kv_heads
        if groups == 1:
            return value
        wide = ops.unsqueeze(value, ops.constant(2))
        target = ops.constant([1, 1, groups, 1, 1])
        wide = ops.broadcast(wide, target, broadcast_spec="BIDIRECTIONAL")
        shape = ops.constant([0, spec.num_heads, -1, spec.head_dim])
        return ops.reshape(wide, shape, special_zero=True)

    def last(self, value: Any) -> Any:
        """[B, T, C] -> [B, 1, C]."""
        return self.ops.gather(value, self.ops.constant([-1]), self.ops.constant(1))

    def build(self) -> Any:
        ops, spec = self.ops, self.spec
        tables = [
            ops.unsqueeze(
                ops.gather(
                    ops.constant(np.concatenate([table, table], axis=1)),
                    self.positions,
                    ops.constant(0),
                ),
                ops.constant([0, 1]),
            )
            for table in rope_tables(spec, spec.head_dim)
        ]
        mask = self.mask()
        hidden: Any = self.embeds
        for number in range(spec.num_layers):
            layer, last = f"layers.{number}", number == spec.num_layers - 1
            value = self.norm(hidden, f"{layer}.input_layernorm")
            query, key, values = (
                self.heads(self.linear(value, f"{layer}.self_attn.{part}_proj"), count)
                for part, count in (
                    ("q", spec.num_heads),
                    ("k", spec.num_kv_heads),
                    ("v", spec.num_kv_heads),
                )
            )
            key = self.cached(self.turned(key, *tables), f"key.{number}")
            values = self.cached(values, f"value.{number}")
            mixed = ops.scaled_dot_product_attention(
                self.turned(query, *tables), self.shared(key), self.shared(values), mask
            )
            joined = ops.reshape(
                ops.transpose(mixed, ops.constant([0, 2, 1, 3])),
                ops.constant([0, 0, spec.num_heads * spec.head_dim]),
                special_zero=True,
            )
            if last:
                joined, hidden = self.last(joined), self.last(hidden)
            hidden = ops.add(hidden, self.linear(joined, f"{layer}.self_attn.o_proj"))
            value = self.norm(hidden, f"{layer}.post_attention_layernorm")
            gate = ops.swish(self.linear(value, f"{layer}.mlp.gate_proj"))
            gated = ops.multiply(gate, self.linear(value, f"{layer}.mlp.up_proj"))
            hidden = ops.add(hidden, self.linear(gated, f"{layer}.mlp.down_proj"))
        head = "embed_tokens" if spec.tie_word_embeddings else "lm_head"
        logits = self.linear(self.norm(hidden, "norm"), head)
        logits.output(0).set_names({"logits"})
        parameters = [self.embeds, self.positions, self.beams]
        for parameter in parameters:
            parameter.output(0).set_names({parameter.get_friendly_name()})
        return self.openvino.Model([ops.result(logits)], self.sinks, parameters, "decoder")

    def mask(self) -> Any:
        """[1, 1, T, S] float32: a position sees itself and those before it."""
        ops = self.ops
        last = ops.gather(self.positions, ops.constant(-1), ops.constant(0))
        end, one = ops.add(last, ops.constant(1)), ops.constant(1)
        before = ops.range(ops.constant(0), end, one, output_type="i64")
        after = ops.greater(before, ops.unsqueeze(self.positions, ops.constant(1)))
        low = ops.constant(np.finfo(np.float32).min)
        bias = ops.select(after, low, ops.constant(np.float32(0)))
        return ops.unsqueeze(bias, ops.constant([0, 1]))
