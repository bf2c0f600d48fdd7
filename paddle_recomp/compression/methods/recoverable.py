"""Recoverable Compression (Chen et al., AAAI 2025): what stands out visually stays, what the
question asks about is recovered, the remainder is merged around a few centres."""

from __future__ import annotations

import paddle

from paddle_recomp.compression import ops
from paddle_recomp.compression.assemble import Merged, assemble
from paddle_recomp.config import CompressionConfig
from paddle_recomp.types import Compressed, Tensor, VisionFeatures


def recoverable(
    vision: VisionFeatures, text_embeds: Tensor, bounds: Tensor, config: CompressionConfig
) -> Compressed:
    """Compresses B images for B questions.

    Shapes: text_embeds [B, P], bounds [B, 2] int64 (least and most tokens) -> see `Compressed`.
    Source: paper section 3 and the public code; docs/algorithm.md lists where they differ."""
    text_score = ops.cosine_scores(text_embeds, vision.patch_embeds) * float(config.text_sign)
    return compress_by_scores(
        vision.features, vision.keys, vision.visual_score, text_score, bounds, config
    )


def compress_by_scores(
    features: Tensor,
    keys: Tensor,
    visual_score: Tensor,
    text_score: Tensor,
    bounds: Tensor,
    config: CompressionConfig,
) -> Compressed:
    """The method after its scores are known: filter, recover, merge.

    Shapes: features and keys [B, N, C], both scores [B, N], bounds [B, 2] int64."""
    size = visual_score.shape[1]
    groups = _filter_counts(visual_score, text_score, features.shape[2], config)
    rest = paddle.ones_like(groups[2])
    if config.rest == "with_centres":
        rest = (groups[2] > 0).astype("int64")
    n_visual, n_text, n_centres, n_rest = ops.share_budget(groups, rest, bounds, size)

    everything = paddle.ones_like(visual_score) > 0
    kept_visual = ops.top(visual_score, everything, n_visual)
    kept_text = ops.top(text_score, paddle.logical_not(kept_visual), n_text)
    kept = paddle.logical_or(kept_visual, kept_text)

    merged = _merge(
        keys, visual_score, text_score, paddle.logical_not(kept), n_centres, n_rest, config
    )
    return assemble(features, kept, kept_text, merged)


def _filter_counts(
    visual_score: Tensor, text_score: Tensor, channels: int, config: CompressionConfig
) -> list[Tensor]:
    """Tokens that the dynamic scale filter gives to each group: three counts [B] int64."""
    size = visual_score.shape[1]
    everything = paddle.ones_like(visual_score) > 0

    def outliers(scores: Tensor, mask: Tensor, neighbours: int) -> Tensor:
        return ops.outlier_count(
            scores, mask, neighbours, config.outlier_threshold, config.outliers
        )

    def scaled(amount: Tensor, outlier: Tensor, total: Tensor) -> Tensor:
        if config.scaling == "exact":
            return amount * outlier // total
        ratio = outlier.astype("float64") / total.astype("float64")
        return paddle.floor(amount.astype("float64") * ratio).astype("int64")

    n_visual = outliers(visual_score, everything, config.neighbours)
    n_patches = paddle.full_like(n_visual, size)
    n_visual = scaled(n_patches, n_visual, n_patches)
    kept_visual = ops.top(visual_score, everything, n_visual)
    remainder = paddle.logical_not(kept_visual)

    if config.text_scope == "remainder":
        text_outliers, text_total = (
            outliers(text_score, remainder, config.neighbours),
            size - n_visual,
        )
    else:
        # Adding, since `expand_as` asks the exported graph for a batch of -1.
        lowest = text_score.min(axis=1, keepdim=True) + paddle.zeros_like(text_score)
        filled = paddle.where(kept_visual, lowest, text_score)
        text_outliers, text_total = outliers(filled, everything, config.neighbours), n_patches
    n_text = scaled(size - n_visual, text_outliers, text_total.clip(min=1))
    kept_text = ops.top(text_score, remainder, n_text)
    remainder = paddle.logical_and(remainder, paddle.logical_not(kept_text))

    left = remainder.astype("int64").sum(axis=1)
    amount = left if config.centres_of == "remainder" else paddle.full_like(left, channels)
    n_centres = scaled(
        amount, outliers(visual_score, remainder, config.centre_neighbours), left.clip(min=1)
    )
    return [n_visual, n_text, paddle.minimum(n_centres, left)]


def _merge(
    keys: Tensor,
    visual_score: Tensor,
    text_score: Tensor,
    remainder: Tensor,
    n_centres: Tensor,
    n_rest: Tensor,
    config: CompressionConfig,
) -> Merged:
    """Merges the remainder [B, N] around its `n_centres` [B] visually strongest patches, and all
    but the centres into `n_rest` [B] tokens."""
    size = remainder.shape[1]
    order, rank = ops.descending_order(visual_score, remainder)
    is_centre = paddle.logical_and(rank < n_centres.unsqueeze(1), remainder)
    others = paddle.logical_and(remainder, paddle.logical_not(is_centre))

    # At least one row, masked where there is no centre: kernels dislike empty axes.
    rows = n_centres.max().clip(min=1)
    centre = order[:, :rows]
    exists = paddle.arange(size, dtype="int64").unsqueeze(0)[:, :rows] < n_centres.unsqueeze(1)

    if config.cluster_keys == "misaligned":
        position = (paddle.cumsum(remainder.astype("int64"), axis=1) - 1).clip(min=0)
        keys = ops.take_rows(keys, position)
    lengths = ops.length(keys)
    similarity = paddle.matmul(ops.take_rows(keys, centre), keys, transpose_y=True)
    similarity = similarity / paddle.take_along_axis(lengths, centre, 1, broadcast=False).unsqueeze(
        -1
    )
    similarity = similarity / lengths.unsqueeze(1)
    similarity = similarity + config.text_weight * text_score.unsqueeze(1)
    # A centre may absorb other centres too; only itself is out of the question.
    itself = centre.unsqueeze(-1) == paddle.arange(size, dtype="int64")
    candidates = paddle.logical_and(remainder.unsqueeze(1), paddle.logical_not(itself))
    member = ops.nearest_members(similarity, candidates, config.members)
    member = paddle.logical_and(member, exists.unsqueeze(-1))

    dtype = visual_score.dtype
    score = visual_score.unsqueeze(1)
    centre_weights = itself.astype(dtype) + member.astype(dtype) * score
    rest_weights = others.astype(dtype).unsqueeze(1) * score
    weights = paddle.concat([centre_weights, rest_weights], axis=1)
    if config.merge == "normalised":
        weights = weights * paddle.reciprocal(weights.sum(axis=-1, keepdim=True).clip(min=1e-12))

    lowest = paddle.full([1], float("-inf"), dtype=similarity.dtype)
    return Merged(
        weights=weights,
        centre=centre,
        n_centres=n_centres,
        n_rest=n_rest,
        is_centre=is_centre,
        centre_rank=rank,
        absorbed=member.astype("int64").max(axis=1) > 0,
        best_centre=paddle.where(member, similarity, lowest).argmax(axis=1),
    )
