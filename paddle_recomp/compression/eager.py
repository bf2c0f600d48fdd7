"""Compression of Paddle tensors, eagerly, with the checks that a graph cannot make."""

from __future__ import annotations

import math

from paddle_recomp.compression import lazy_paddle as paddle
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.compression.method import MethodInputs
from paddle_recomp.compression.registry import get_method
from paddle_recomp.config import TokenBudget
from paddle_recomp.errors import ConfigError, FeatureError
from paddle_recomp.types import Compressed, Tensor, VisionFeatures


def compress(
    vision: VisionFeatures,
    text_embeds: Tensor,
    config: CompressionConfig | None = None,
    budget: TokenBudget | None = None,
    **others: Tensor,
) -> Compressed:
    """Compresses B pictures for B questions.

    Shapes: text_embeds [B, P] -> see `Compressed`. `others` are further inputs of `MethodInputs`
    that the method declares.
    Raises: ConfigError for an unknown method, an impossible budget, or an input that the method
    needs and did not get; FeatureError for NaN or infinity in any input."""
    config = config or CompressionConfig()
    method = get_method(config.method)
    given = {**vision._asdict(), "text_embeds": text_embeds, **others}
    for name, value in given.items():
        if name != "grid" and value is not None and not _all_finite(value):
            raise FeatureError(f"{name} holds NaN or infinity; expected finite numbers")
    for name in method.inputs:
        if given.get(name) is None:
            raise ConfigError(f"method {method.name!r} reads {name}, which was not given")
    batch, size = vision.visual_score.shape
    bounds = (budget or TokenBudget()).bounds(size)
    inputs = MethodInputs(**{name: given[name] for name in method.inputs})
    return method.compress(inputs, paddle.to_tensor(bounds * batch, dtype="int64"), config.options)


def _all_finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite."""
    # A sum is finite only if all numbers are. It is far cheaper than to look at each, which is left
    # for numbers so large that only their sum is infinite.
    return math.isfinite(float(x.sum())) or bool(paddle.isfinite(x).all())
