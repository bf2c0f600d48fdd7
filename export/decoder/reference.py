"""The decoder in plain NumPy, with one parameter in memory at a time. Graphs are compared with it,
for decoders of every kind and size."""

from __future__ import annotations

import numpy as np

from paddle_recomp.checkpoint import Checkpoint, LanguageModelSpec

from .rope import rope_tables


def reference_logits(checkpoint: Checkpoint, embeds: np.ndarray) -> np.ndarray:
    """Embeddings of prompts of one length [B, T, D] -> logits behind the last position [B, V]."""
    spec = checkpoint.spec.language

    def weight(name: str) -> np.ndarray:
        return checkpoint.parameter("language_model", name).astype(np.float32)

    def linear(value: np.ndarray, name: str, bias: bool) -> np.ndarray:
        product = value @ weight(f"{name}.weight").T
        return product + weight(f"{name}.bias") if bias else product

    def norm(value: np.ndarray, name: str) -> np.ndarray:
        squares = np.square(value).mean(axis=-1, keepdims=True)
        return value / np.sqrt(squares + np.float32(spec.rms_norm_eps)) * weight(f"{name}.weight")

    hidden = embeds.astype(np.float32)
    for number in range(spec.num_layers):
        layer = f"layers.{number}"
        value = norm(hidden, f"{layer}.input_layernorm")
        query, key, value = (
            _heads(linear(value, f"{layer}.self_attn.{name}_proj", spec.qkv_bias), spec)
            for name in "qkv"
        )
        heads = _attention(_rotated(query, spec), _rotated(key, spec), value, spec)
        hidden = hidden + linear(heads, f"{layer}.self_attn.o_proj", spec.output_bias)
        value = norm(hidden, f"{layer}.post_attention_layernorm")
        gate, up = (
            linear(value, f"{layer}.mlp.{name}_proj", spec.mlp_bias) for name in ("gate", "up")
        )
        gated = gate / (1 + np.exp(-gate)) * up
        hidden = hidden + linear(gated, f"{layer}.mlp.down_proj", spec.mlp_bias)
    head = "embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
    return norm(hidden[:, -1], "norm") @ weight(head).T


def _heads(value: np.ndarray, spec: LanguageModelSpec) -> np.ndarray:
    """[B, T, heads · d] -> [B, heads, T, d]."""
    return value.reshape(*value.shape[:2], -1, spec.head_dim).transpose(0, 2, 1, 3)


def _rotated(value: np.ndarray, spec: LanguageModelSpec) -> np.ndarray:
    """Heads [B, heads, T, d] turned by their positions; the halves of a head are a pair."""
    cos, sin = (table[: value.shape[2]] for table in rope_tables(spec, spec.head_dim))
    first, second = np.split(value, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, spec: LanguageModelSpec
) -> np.ndarray:
    """[B, heads, T, d] each -> [B, T, heads · d]; a position sees itself and those before it."""
    shared = spec.num_heads // spec.num_kv_heads
    key, value = (np.repeat(array, shared, axis=1) for array in (key, value))
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(np.float32(spec.head_dim))
    distance = np.subtract.outer(np.arange(query.shape[2]), np.arange(query.shape[2]))
    seen = distance >= 0
    if spec.sliding_window is not None:
        seen &= distance < spec.sliding_window
    scores = np.where(seen, scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = scores / scores.sum(axis=-1, keepdims=True) @ value
    return mixed.transpose(0, 2, 1, 3).reshape(len(query), query.shape[2], -1)
