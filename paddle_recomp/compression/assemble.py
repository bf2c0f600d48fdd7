"""From the choice of a method to its output: tokens in order, padded, with their provenance."""

from __future__ import annotations

from typing import NamedTuple

from paddle_recomp.compression import lazy_paddle as paddle
from paddle_recomp.compression import ops
from paddle_recomp.types import Compressed, Tensor


class Merged(NamedTuple):
    """Tokens that stand for several patches: K centres and one rest token behind them."""

    weights: Tensor
    """[B, K + 1, N] float: share of each patch in each centre's token, the rest token last."""
    centre: Tensor
    """[B, K] int64: the patch of each centre, in the order of the output."""
    n_centres: Tensor
    """[B] int64: how many of the K are real."""
    n_rest: Tensor
    """[B] int64: 1 where the rest token is kept."""
    is_centre: Tensor
    """[B, N] bool."""
    centre_rank: Tensor
    """[B, N] int64: place of each centre patch among the centres."""
    absorbed: Tensor
    """[B, N] bool: patches that some centre took in."""
    best_centre: Tensor
    """[B, N] int64: the most similar of the centres that took a patch in."""
    stage: int
    """The number of the method's stage for a merged token."""
    rest_stage: int = -1
    """The same for the rest token."""


def assemble(
    features: Tensor, kept: Tensor, kept_stage: Tensor | int, merged: Merged | None = None
) -> Compressed:
    """Kept patches in ascending order (a language model is sensitive to order), then the merged
    tokens, then the rest token; padded to the largest count of the batch.

    Shapes: features [B, N, C], kept [B, N] bool, kept_stage [B, N] int64 or one number for all: the
    stage of each kept patch -> see `Compressed`."""
    size = features.shape[1]
    patch = paddle.arange(size, dtype="int64").unsqueeze(0)
    counted = paddle.cumsum(kept.astype("int64"), axis=1)
    kept_count = counted[:, -1:]
    count = kept_count
    if merged is not None:
        n_rest = merged.n_rest.unsqueeze(1)
        first_rest = kept_count + merged.n_centres.unsqueeze(1)
        count = first_rest + n_rest

    capacity = count.max()
    row = patch[:, :capacity]
    # Distinct integers, so that the order of equal keys cannot matter.
    ascending = paddle.argsort(paddle.where(kept, patch, patch + size), axis=1)[:, :capacity]
    is_kept = row < kept_count
    some_patch = paddle.where(is_kept, ascending, paddle.zeros_like(ascending))
    tokens = ops.take_rows(features, some_patch) * is_kept.astype(features.dtype).unsqueeze(-1)
    nothing = paddle.full_like(ascending, -1)
    index = paddle.where(is_kept, ascending, nothing)
    stage_of_patch = paddle.zeros_like(counted) + kept_stage
    stage = paddle.take_along_axis(stage_of_patch, some_patch, 1, broadcast=False)
    stage = paddle.where(is_kept, stage, nothing)
    owner = paddle.where(kept, counted - 1, paddle.full_like(counted, -1))
    if merged is None:
        return Compressed(tokens, count.squeeze(1), index, stage, owner, centre=nothing)

    is_made = paddle.logical_and(row >= kept_count, row < count)
    is_merged = paddle.logical_and(is_made, row < first_rest)
    # The rest token is the last of those that were made.
    rest_place = paddle.full_like(ascending, 1) * (paddle.shape(merged.weights)[1] - 1)
    place = paddle.where(is_merged, row - kept_count, rest_place)
    # Two gathers are added, because one gather over patches and merged tokens in one array would
    # copy every patch.
    made = ops.take_rows(paddle.matmul(merged.weights, features), place)
    tokens = tokens + made * is_made.astype(features.dtype).unsqueeze(-1)
    of_stage = paddle.where(
        is_merged,
        paddle.full_like(stage, merged.stage),
        paddle.full_like(stage, merged.rest_stage),
    )
    return Compressed(
        tokens=tokens,
        count=count.squeeze(1),
        index=index,
        stage=paddle.where(is_made, of_stage, stage),
        owner=_with_merged_owners(owner, kept, kept_count, first_rest, merged),
        centre=paddle.where(is_merged, _patch_of(merged.centre, place), nothing),
    )


def _patch_of(centre: Tensor, place: Tensor) -> Tensor:
    """The patch of the centre at each place: centre [B, K], place [B, M] (up to K) -> [B, M]."""
    padded = paddle.concat([centre, paddle.zeros_like(centre[:, :1])], axis=1)
    return paddle.take_along_axis(padded, place, axis=1, broadcast=False)


def _with_merged_owners(
    owner: Tensor, kept: Tensor, kept_count: Tensor, first_rest: Tensor, merged: Merged
) -> Tensor:
    """Adds the owners of all other patches to the owners [B, N] of the kept ones."""
    left = paddle.logical_and(merged.n_rest.unsqueeze(1) > 0, paddle.logical_not(kept))
    owner = paddle.where(left, first_rest + paddle.zeros_like(owner), owner)
    owner = paddle.where(merged.absorbed, kept_count + merged.best_centre, owner)
    return paddle.where(merged.is_centre, kept_count + merged.centre_rank, owner)
