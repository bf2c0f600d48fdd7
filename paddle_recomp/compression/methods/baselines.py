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

_PRIME, _STEP, _ROUNDS = 2**31 - 1, 12345, 4
"""The generator squares a number, adds the step and takes the remainder, so many times."""
_STRONGEST = 4
"""So many patches stand for a picture."""


@dataclass(frozen=True)
class RandomOptions(FilterOptions):
    """The filter's options and a seed."""

    seed: int = option(
        0,
        "Another seed draws other patches; with the same one the same question about the same "
        "picture gets the same patches.",
    )


def visual(inputs: MethodInputs, bounds: Tensor, options: FilterOptions) -> Compressed:
    """The patches that the class token attends to most. Shapes as in `recoverable`."""
    return _keep_top(inputs.visual_score, inputs, bounds, options)


def random(inputs: MethodInputs, bounds: Tensor, options: RandomOptions) -> Compressed:
    """A draw of its own for every question about every picture. Shapes as in `recoverable`.

    A graph has no state, so the question and the picture themselves are what is drawn from: which
    of two neighbouring numbers of the question's embedding is the greater, and which patches the
    class token attends to most. Only order counts, so a rounding that differs between runtimes has
    to exchange two numbers before it changes a draw; the rest is computed in whole numbers."""
    text, score = inputs.text_embeds, inputs.visual_score
    size = score.shape[1]
    greater = (text[:, 1:] > text[:, :-1]).astype("int64")
    strongest = ops.ranking(score).order[:, :_STRONGEST]
    given = paddle.concat([greater, strongest], axis=1)
    weights = _numbers(given.shape[1], 2 * options.seed)
    key = (given * paddle.to_tensor(weights, dtype="int64")).sum(axis=1, keepdim=True)
    drawn = key + paddle.to_tensor(_numbers(size, 2 * options.seed + 1), dtype="int64")
    for _ in range(_ROUNDS):
        drawn = _remainder(drawn)
        drawn = drawn * drawn + _STEP
    return _keep_top(_remainder(drawn).astype("float64"), inputs, bounds, options)


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


def _numbers(count: int, seed: int) -> list[int]:
    """Numbers from a generator of our own, because those of libraries change."""
    states = [(place * 48271 + seed * 69621) % _PRIME for place in range(1, count + 1)]
    for _ in range(_ROUNDS):
        states = [(state * state + _STEP) % _PRIME for state in states]
    return states


def _remainder(x: Tensor) -> Tensor:
    """The remainder of non-negative integers divided by the prime."""
    prime = paddle.to_tensor([_PRIME], dtype="int64")
    return x - x // prime * prime


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
    summary="Keeps patches drawn at random, anew for every question about every picture, as many "
    "as the filter finds in the visual score.",
    source="a baseline of this project",
    compress=random,
    options=RandomOptions,
    inputs=(*_READS, "text_embeds"),
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
