"""Merging of patches around centres, which several methods share.

B images, N patches, C width, K centres."""

from __future__ import annotations

from typing import Literal, NamedTuple

from paddle_recomp.compression import lazy_paddle as paddle
from paddle_recomp.compression import ops
from paddle_recomp.compression.assemble import Merged
from paddle_recomp.types import Tensor

LEAST_WEIGHT = 1e-30
"""A rest token whose weights sum to less than this is the plain mean of its patches. Runtimes may
take floats below 1.2e-38 for zero, so they agree only on sums far above that."""


class Centres(NamedTuple):
    """The patches that merged tokens stand around."""

    patch: Tensor
    """[B, K] int64: the centres in the order of their tokens; those beyond `count` mean nothing."""
    count: Tensor
    """[B] int64: how many of the K are real."""
    chosen: Tensor
    """[B, N] bool: which patches are centres."""
    rank: Tensor
    """[B, N] int64: the place of each centre among the tokens."""


def first_centres(order: Tensor, rank: Tensor, among: Tensor, count: Tensor) -> Centres:
    """The first `count` [B] patches of an order.

    Shapes: order [B, N] int64 (patch at each rank), rank [B, N] int64 (place of each patch), among
    [B, N] bool (which patches may become centres)."""
    # At least one row, masked where there is no centre, because kernels fail on empty axes.
    rows = count.max().clip(min=1)
    chosen = paddle.logical_and(rank < count.unsqueeze(1), among)
    return Centres(order[:, :rows], count, chosen, rank)


def key_similarity(keys: Tensor, centre: Tensor) -> Tensor:
    """Cosine between the key of each centre and that of each patch.

    Shapes: keys [B, N, C], centre [B, K] int64 -> [B, K, N]."""
    lengths = ops.length(keys)
    similarity = paddle.matmul(ops.take_rows(keys, centre), keys, transpose_y=True)
    own = paddle.take_along_axis(lengths, centre, 1, broadcast=False)
    return similarity / own.unsqueeze(-1) / lengths.unsqueeze(1)


def merge_around(
    centres: Centres,
    similarity: Tensor,
    candidates: Tensor,
    others: Tensor,
    score: Tensor,
    members: int,
    weights: Literal["normalised", "raw"],
    n_rest: Tensor,
    stage: int,
    rest_stage: int,
) -> Merged:
    """Lets each centre take in its most similar candidates, weighted by a score, and one rest token
    sum up all `others`. A patch may join several centres; `owner` names the most similar one.

    Shapes: similarity [B, K, N]; candidates, others [B, N] bool; score [B, N]; n_rest [B] int64 (1
    where there is a rest token)."""
    size = score.shape[1]
    itself = centres.patch.unsqueeze(-1) == paddle.arange(size, dtype="int64")
    allowed = paddle.logical_and(candidates.unsqueeze(1), paddle.logical_not(itself))
    place = paddle.arange(size, dtype="int64").unsqueeze(0)[:, : paddle.shape(centres.patch)[1]]
    exists = place < centres.count.unsqueeze(1)
    member = ops.nearest_members(similarity, allowed, members)
    member = paddle.logical_and(member, exists.unsqueeze(-1))

    of_centres = itself.astype(score.dtype) + member.astype(score.dtype) * score.unsqueeze(1)
    alike = others.astype(score.dtype)
    of_rest = alike * score
    if weights == "normalised":
        # A centre has the weight 1, but the scores of all others may underflow together. What is
        # left of them below this limit depends on the runtime, so such patches count alike.
        lost = (of_rest.sum(axis=-1, keepdim=True) < LEAST_WEIGHT).astype(score.dtype)
        of_rest = of_rest + alike * lost
    found = paddle.concat([of_centres, of_rest.unsqueeze(1)], axis=1)
    if weights == "normalised":
        total = found.sum(axis=-1, keepdim=True).clip(min=LEAST_WEIGHT)
        found = found * paddle.reciprocal(total)

    lowest = paddle.full([1], float("-inf"), dtype=similarity.dtype)
    return Merged(
        weights=found,
        centre=centres.patch,
        n_centres=centres.count,
        n_rest=n_rest,
        is_centre=centres.chosen,
        centre_rank=centres.rank,
        absorbed=member.astype("int64").max(axis=1) > 0,
        best_centre=paddle.where(member, similarity, lowest).argmax(axis=1),
        stage=stage,
        rest_stage=rest_stage,
    )
