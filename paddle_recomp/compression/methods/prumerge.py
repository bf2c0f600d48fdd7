"""LLaVA-PruMerge (Shang et al., ICCV 2025): patches whose class attention is an outlier become
centres, each of which absorbs the patches whose keys are most like its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paddle_recomp.compression import lazy_paddle as paddle
from paddle_recomp.compression import ops
from paddle_recomp.compression.assemble import assemble
from paddle_recomp.compression.merging import first_centres, key_similarity, merge_around
from paddle_recomp.compression.method import Method, MethodInputs
from paddle_recomp.config import Options, option
from paddle_recomp.types import Compressed, StageInfo, Tensor


@dataclass(frozen=True)
class PruMergeOptions(Options):
    """The switches of PruMerge."""

    fence: float = option(
        1.5, "A score above the third quartile by this many interquartile ranges is an outlier."
    )
    members: int = option(32, "Each centre absorbs at most this many patches.", least=1)
    absorbs: Literal["pruned", "all"] = option(
        "pruned", "A centre absorbs patches that are no centres, or any patch but itself."
    )
    merge: Literal["normalised", "raw"] = option(
        "normalised", "With `normalised` the weights of a merged token sum to one."
    )


def prumerge(inputs: MethodInputs, bounds: Tensor, options: PruMergeOptions) -> Compressed:
    """Compresses B images; the question plays no part.

    Shapes: see `MethodInputs`; bounds [B, 2] int64 (least and most tokens) -> see `Compressed`.
    Source: the paper's sections 3.2 (adaptive selection) and 3.3 (token supplement). It leaves open
    whether a centre may absorb another centre, and the scale of the weights: both are options. The
    count is the number of outliers; one token for the rest stands behind the centres, within the
    budget. With a budget of one token only the rest token stays; a budget of all patches keeps them
    as they are."""
    score = inputs.visual_score
    size = score.shape[1]
    everything = paddle.ones_like(score) > 0
    found = _outliers_above(score, options.fence) + 1
    target = paddle.minimum(paddle.maximum(found, bounds[:, 0]), bounds[:, 1])
    whole = (target == size).astype("int64")
    n_centres = (target - 1) * (1 - whole)
    n_rest = 1 - whole
    kept = paddle.logical_and(everything, whole.unsqueeze(1) > 0)

    chosen = ops.top(score, n_centres)
    patch = paddle.arange(size, dtype="int64").unsqueeze(0)
    # A language model is sensitive to order, so centres have the order of their patches.
    order = paddle.argsort(paddle.where(chosen, patch, patch + size), axis=1)
    rank = paddle.cumsum(chosen.astype("int64"), axis=1) - 1
    centres = first_centres(order, rank, chosen, n_centres)
    pruned = paddle.logical_not(paddle.logical_or(chosen, kept))
    merged = merge_around(
        centres,
        key_similarity(inputs.keys, centres.patch),
        candidates=pruned if options.absorbs == "pruned" else everything,
        others=pruned,
        score=score,
        members=options.members,
        weights=options.merge,
        n_rest=n_rest,
        stage=1,
        rest_stage=2,
    )
    return assemble(inputs.features, kept, 0, merged)


def _outliers_above(score: Tensor, fence: float) -> Tensor:
    """How many scores lie above the third quartile by more than `fence` interquartile ranges:
    score [B, N] -> [B] int64. Quartiles are interpolated linearly between the sorted scores."""
    ranked = paddle.sort(score.astype("float64"), axis=1)

    def quartile(share: float) -> Tensor:
        place = share * (score.shape[1] - 1)
        below = int(place)
        above = min(below + 1, score.shape[1] - 1)
        # Tensors, because the exporter computes with a Python number in float32.
        upper, lower = (
            paddle.full([1], part, dtype="float64") for part in (place - below, 1 + below - place)
        )
        return ranked[:, below : below + 1] * lower + ranked[:, above : above + 1] * upper

    first, third = quartile(0.25), quartile(0.75)
    limit = third + (third - first) * paddle.full([1], fence, dtype="float64")
    return (score.astype("float64") > limit).astype("int64").sum(axis=1)


METHOD = Method(
    name="prumerge",
    summary="Patches whose class attention is an outlier become centres; each is merged with the "
    "patches whose keys are most similar.",
    source="Shang et al., LLaVA-PruMerge (ICCV 2025), sections 3.2 and 3.3",
    compress=prumerge,
    options=PruMergeOptions,
    inputs=("features", "keys", "visual_score"),
    stages=(
        StageInfo("kept", "patch", "stays as it is"),
        StageInfo("merged", "merged", "stand for similar patches"),
        StageInfo("rest", "rest", "sums up all others"),
    ),
)
