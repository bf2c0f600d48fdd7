"""Rotary positions as tables: cosines and sines, for the base and the scaling of a model."""

from __future__ import annotations

import math

import numpy as np

from paddle_recomp.checkpoint import LanguageModelSpec


def rope_tables(spec: LanguageModelSpec, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [max_positions, width / 2] float32. If a head is `width` wide, and so wider
    than head_dim, it has zeros behind each of its halves, which stay zero under every angle."""
    frequencies = np.zeros(width // 2, dtype=np.float32)
    frequencies[: spec.head_dim // 2] = _frequencies(spec)
    # In float32, as in the common implementations of these models.
    positions = np.arange(spec.max_positions, dtype=np.float32)
    angles = positions[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def _frequencies(spec: LanguageModelSpec) -> np.ndarray:
    """Radians per position [head_dim / 2] float32."""
    exponents = np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim)
    plain = np.float32(1) / np.float32(spec.rope_theta) ** exponents
    scaling = spec.rope_scaling
    # `dynamic` has an effect only beyond the context, which a graph never exceeds.
    if scaling is None or scaling["rope_type"] == "dynamic":
        return plain
    slow = plain / np.float32(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return slow
    # llama3: short wavelengths, which fit often into the old context, stay; long ones are slowed;
    # between them there is a smooth transition (Llama 3.1's reference code).
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * plain / np.float32(2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)
    return kept * plain + (1 - kept) * slow
