"""Compression methods: pure functions `(vision, text_embeds, bounds, config) -> Compressed`.

A new one is a file, a line in METHODS and a golden case."""

from __future__ import annotations

from collections.abc import Callable

import paddle

from paddle_recomp.compression.methods.baselines import random, uniform, visual
from paddle_recomp.compression.methods.recoverable import recoverable
from paddle_recomp.config import CompressionConfig, TokenBudget
from paddle_recomp.errors import ConfigError, FeatureError
from paddle_recomp.types import Compressed, Tensor, VisionFeatures

Method = Callable[[VisionFeatures, Tensor, Tensor, CompressionConfig], Compressed]

METHODS: dict[str, Method] = {
    "recoverable": recoverable,
    "visual": visual,
    "random": random,
    "uniform": uniform,
}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises: ConfigError listing the methods that there are."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]


def compress(
    vision: VisionFeatures,
    text_embeds: Tensor,
    config: CompressionConfig | None = None,
    budget: TokenBudget | None = None,
) -> Compressed:
    """Compresses paddle tensors eagerly, with the checks that a graph cannot make.

    Shapes: text_embeds [B, P] -> see `Compressed`.
    Raises: ConfigError for an unknown method or an impossible budget, FeatureError for NaN or
    infinity in any input."""
    config = config or CompressionConfig()
    for name, value in (*vision._asdict().items(), ("text_embeds", text_embeds)):
        if not bool(paddle.isfinite(value).all()):
            raise FeatureError(f"{name} holds NaN or infinity; expected finite numbers")
    batch, size = vision.visual_score.shape
    bounds = (budget or TokenBudget()).bounds(size)
    return get_method(config.method)(
        vision, text_embeds, paddle.to_tensor(bounds * batch, dtype="int64"), config
    )
