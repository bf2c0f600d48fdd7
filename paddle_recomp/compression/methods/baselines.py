"""What every method has to beat: the visual score alone, a random choice, a uniform grid."""

from __future__ import annotations

import math

import paddle

from paddle_recomp.compression import ops
from paddle_recomp.compression.assemble import assemble
from paddle_recomp.config import CompressionConfig
from paddle_recomp.types import Compressed, Tensor, VisionFeatures


def visual(
    vision: VisionFeatures, text_embeds: Tensor, bounds: Tensor, config: CompressionConfig
) -> Compressed:
    """The patches that the class token attends to most. Shapes as in `recoverable`."""
    return _keep_top(vision.visual_score, vision, bounds, config)


def random(
    vision: VisionFeatures, text_embeds: Tensor, bounds: Tensor, config: CompressionConfig
) -> Compressed:
    """A choice that depends on `config.seed` alone. Shapes as in `recoverable`.

    The order is drawn when the graph is built, in whole numbers, so that every backend draws the
    same; an exported graph holds it as a constant."""
    ranks = _random_ranks(vision.visual_score.shape[1], config.seed)
    score = paddle.to_tensor(ranks, dtype="float64").unsqueeze(0)
    return _keep_top(score, vision, bounds, config)


def uniform(
    vision: VisionFeatures, text_embeds: Tensor, bounds: Tensor, config: CompressionConfig
) -> Compressed:
    """Patches spread evenly over the picture. Shapes as in `recoverable`."""
    spread = paddle.to_tensor(_spread_ranks(vision.visual_score.shape[1]), dtype="float64")
    return _keep_top(-spread.unsqueeze(0), vision, bounds, config)


def _keep_top(
    score: Tensor, vision: VisionFeatures, bounds: Tensor, config: CompressionConfig
) -> Compressed:
    """Keeps the highest of the scores [B or 1, N]; in the dynamic budget as many as the filter
    finds in the visual score."""
    visual_score = vision.visual_score
    everything = paddle.ones_like(visual_score) > 0
    found = ops.outlier_count(
        visual_score, everything, config.neighbours, config.outlier_threshold, config.outliers
    )
    count = paddle.minimum(paddle.maximum(found, bounds[:, 0]), bounds[:, 1])
    score = score + paddle.zeros_like(visual_score).astype(score.dtype)
    return assemble(vision.features, ops.top(score, everything, count), None, None)


def _random_ranks(size: int, seed: int) -> list[int]:
    """A number for each patch from a generator of our own: those of libraries change."""
    prime = 2**31 - 1
    states = [(patch * 48271 + seed * 69621) % prime for patch in range(1, size + 1)]
    for _ in range(4):
        states = [(state * state + 12345) % prime for state in states]
    return states


def _spread_ranks(size: int) -> list[int]:
    """An order of the patches in which every prefix is spread evenly in both directions: the
    ordered-dither (Bayer) rank of each patch of a square grid."""
    side = math.isqrt(size)
    width = side if side * side == size else size
    bits = max(width - 1, 1).bit_length()

    def rank(patch: int) -> int:
        y, x = divmod(patch, width)
        value = 0
        for bit in range(bits):
            value = value << 2 | ((x ^ y) >> bit & 1) << 1 | y >> bit & 1
        return value

    return [rank(patch) for patch in range(size)]
