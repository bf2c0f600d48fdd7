"""The baselines that every method has to beat: the visual score alone, a random choice, a uniform
grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paddle_recomp.compression import lazy_paddle as paddle
from paddle_recomp.compression import ops
from paddle_recomp.compression.assemble import assemble
from paddle_recomp.compression.filter import FilterOptions, dynamic_count
from paddle_recomp.compression.method import Method, MethodInputs
from paddle_recomp.config import option
from paddle_recomp.types import Compressed, StageInfo, Tensor


@dataclass(frozen=True)
class RandomOptions(FilterOptions):
    """The filter's options and a seed."""

    seed: int = option(0, "The same seed draws the same patches.")


def visual(inputs: MethodInputs, bounds: Tensor, options: FilterOptions) -> Compressed:
    """The patches that the class token attends to most. Shapes as in `recoverable`."""
    return _keep_top(inputs.visual_score, inputs, bounds, options)


def random(inputs: MethodInputs, bounds: Tensor, options: RandomOptions) -> Compressed:
    """A choice that depends on `options.seed` alone. Shapes as in `recoverable`.

    The order is drawn when the graph is built, in whole numbers, so that every backend draws the
    same; an exported graph holds it as a constant."""
    ranks = _random_ranks(inputs.visual_score.shape[1], options.seed)
    score = paddle.to_tensor(ranks, dtype="float64").unsqueeze(0)
    return _keep_top(score, inputs, bounds, options)


def uniform(inputs: MethodInputs, bounds: Tensor, options: FilterOptions) -> Compressed:
    """Patches spread evenly over the picture. Shapes as in `recoverable`."""
    ranks = _spread_ranks(inputs.visual_score.shape[1])
    spread = paddle.to_tensor(ranks, dtype="float64")
    return _keep_top(-spread.unsqueeze(0), inputs, bounds, options)


def _keep_top(
    score: Tensor, inputs: MethodInputs, bounds: Tensor, options: FilterOptions
) -> Compressed:
    """Keeps the highest of the scores [B or 1, N]; in the dynamic budget as many as the filter
    finds in the visual score."""
    count = dynamic_count(inputs.visual_score, bounds, options)
    score = score + paddle.zeros_like(inputs.visual_score).astype(score.dtype)
    return assemble(inputs.features, ops.top(score, count), 0)


def _random_ranks(size: int, seed: int) -> list[int]:
    """A number for each patch from a generator of our own, because those of libraries change."""
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


_READS = ("features", "visual_score")

VISUAL = Method(
    name="visual",
    summary="Keeps the patches that the class token attends to most.",
    source="a baseline of this project",
    compress=visual,
    options=FilterOptions,
    inputs=_READS,
    stages=(StageInfo("visual", "patch", "stand out in the picture"),),
)
RANDOM = Method(
    name="random",
    summary="Keeps patches drawn at random, as many as the filter finds in the visual score.",
    source="a baseline of this project",
    compress=random,
    options=RandomOptions,
    inputs=_READS,
    stages=(StageInfo("random", "patch", "drawn at random"),),
)
UNIFORM = Method(
    name="uniform",
    summary="Keeps patches spread evenly over the picture.",
    source="a baseline of this project",
    compress=uniform,
    options=FilterOptions,
    inputs=_READS,
    stages=(StageInfo("uniform", "patch", "spread evenly over the picture"),),
)
