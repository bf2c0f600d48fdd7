"""Recoverable Compression (Chen et al., AAAI 2025): patches that stand out stay, patches that the
question asks about are recovered, and the remainder is merged around a few centres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paddle_recomp.compression import lazy_paddle as paddle
from paddle_recomp.compression import ops
from paddle_recomp.compression.assemble import Merged, assemble
from paddle_recomp.compression.filter import FilterOptions
from paddle_recomp.compression.merging import first_centres, key_similarity, merge_around
from paddle_recomp.compression.method import Method, MethodInputs
from paddle_recomp.config import option
from paddle_recomp.types import Compressed, Stage, StageInfo, Tensor


@dataclass(frozen=True)
class RecoverableOptions(FilterOptions):
    """The switches of Recoverable Compression, one per place where the paper's words and the
    authors' public code differ. The defaults are the `corrected` preset."""

    scaling: Literal["exact", "float64"] = option(
        "exact",
        "`exact`: the product of a count and its ratio is computed in integers. `float64`: it is "
        "computed in float64 and cut to an integer (public code), which loses one token at some "
        "sizes, since 49 * (1 / 49) < 1.",
    )
    text_sign: Literal[1, -1] = option(
        1, "The text score has this sign; published work disagrees on it."
    )
    text_scope: Literal["remainder", "all"] = option(
        "remainder",
        "Filter the text score over the patches that are left, or over all of them with the kept "
        "ones at the minimum.",
    )
    centres_of: Literal["remainder", "channels"] = option(
        "remainder", "The centres' ratio multiplies the tokens left, or the channels (public code)."
    )
    cluster_keys: Literal["aligned", "misaligned"] = option(
        "aligned",
        "`misaligned`: position j of the remainder takes key j of all patches (public code).",
    )
    merge: Literal["normalised", "raw"] = option(
        "normalised", "With `normalised` the weights of a merged token sum to one."
    )
    rest: Literal["always", "with_centres"] = option(
        "always", "The token that sums up everything else is kept always, or only beside centres."
    )
    text_weight: float = option(
        50.0, "The text score has this weight beside the key similarity when members are chosen."
    )
    members: int = option(32, "Each centre absorbs at most this many tokens.", least=1)
    centre_neighbours: int = option(
        10, "The outlier factor that counts the centres looks at this many neighbours.", least=1
    )


def recoverable(inputs: MethodInputs, bounds: Tensor, options: RecoverableOptions) -> Compressed:
    """Compresses B images for B questions.

    Shapes: see `MethodInputs`; bounds [B, 2] int64 (least and most tokens) -> see `Compressed`.
    Source: paper section 3 and the public code; docs/algorithm.md lists where they differ."""
    text_score = ops.cosine_scores(inputs.text_embeds, inputs.patch_embeds)
    return compress_by_scores(
        inputs.features,
        inputs.keys,
        inputs.visual_score,
        text_score * float(options.text_sign),
        bounds,
        options,
    )


def compress_by_scores(
    features: Tensor,
    keys: Tensor,
    visual_score: Tensor,
    text_score: Tensor,
    bounds: Tensor,
    options: RecoverableOptions,
) -> Compressed:
    """The method after its scores are known: filter, recover, merge.

    Shapes: features and keys [B, N, C], both scores [B, N], bounds [B, 2] int64."""
    size = visual_score.shape[1]
    by_visual, by_text = ops.ranking(visual_score), ops.ranking(text_score)
    groups = _filter_counts(
        visual_score, text_score, by_visual, by_text, features.shape[2], options
    )
    rest = paddle.ones_like(groups[2])
    if options.rest == "with_centres":
        rest = (groups[2] > 0).astype("int64")
    n_visual, n_text, n_centres, n_rest = ops.share_budget(groups, rest, bounds, size)

    kept_visual = by_visual.rank < n_visual.unsqueeze(1)
    kept_text = ops.best(by_text, paddle.logical_not(kept_visual), n_text)
    kept = paddle.logical_or(kept_visual, kept_text)

    merged = _merge(
        *(keys, visual_score, text_score, by_visual),
        *(paddle.logical_not(kept), n_centres, n_rest, options),
    )
    for_text = kept_text.astype("int64")
    stage = for_text * int(Stage.TEXT) + (1 - for_text) * int(Stage.VISUAL)
    return assemble(features, kept, stage, merged)


def _filter_counts(
    visual_score: Tensor,
    text_score: Tensor,
    by_visual: ops.Ranking,
    by_text: ops.Ranking,
    channels: int,
    options: RecoverableOptions,
) -> list[Tensor]:
    """Tokens that the dynamic scale filter gives to each group: three counts [B] int64."""
    size = visual_score.shape[1]
    everything = paddle.ones_like(visual_score) > 0

    def outliers(scores: Tensor, mask: Tensor, neighbours: int) -> Tensor:
        return ops.outlier_count(
            scores, mask, neighbours, options.outlier_threshold, options.outliers
        )

    def scaled(amount: Tensor, outlier: Tensor, total: Tensor) -> Tensor:
        if options.scaling == "exact":
            return amount * outlier // total
        ratio = outlier.astype("float64") / total.astype("float64")
        return paddle.floor(amount.astype("float64") * ratio).astype("int64")

    n_visual = outliers(visual_score, everything, options.neighbours)
    n_patches = paddle.full_like(n_visual, size)
    n_visual = scaled(n_patches, n_visual, n_patches)
    kept_visual = by_visual.rank < n_visual.unsqueeze(1)
    remainder = paddle.logical_not(kept_visual)

    if options.text_scope == "remainder":
        text_outliers, text_total = (
            outliers(text_score, remainder, options.neighbours),
            size - n_visual,
        )
    else:
        # Adding, since `expand_as` asks the exported graph for a batch of -1.
        lowest = text_score.min(axis=1, keepdim=True) + paddle.zeros_like(text_score)
        filled = paddle.where(kept_visual, lowest, text_score)
        text_outliers, text_total = outliers(filled, everything, options.neighbours), n_patches
    n_text = scaled(size - n_visual, text_outliers, text_total.clip(min=1))
    kept_text = ops.best(by_text, remainder, n_text)
    remainder = paddle.logical_and(remainder, paddle.logical_not(kept_text))

    left = remainder.astype("int64").sum(axis=1)
    amount = left if options.centres_of == "remainder" else paddle.full_like(left, channels)
    n_centres = scaled(
        amount, outliers(visual_score, remainder, options.centre_neighbours), left.clip(min=1)
    )
    return [n_visual, n_text, paddle.minimum(n_centres, left)]


def _merge(
    keys: Tensor,
    visual_score: Tensor,
    text_score: Tensor,
    by_visual: ops.Ranking,
    remainder: Tensor,
    n_centres: Tensor,
    n_rest: Tensor,
    options: RecoverableOptions,
) -> Merged:
    """Merges the remainder [B, N] around its `n_centres` [B] visually strongest patches, and all
    but the centres into `n_rest` [B] tokens."""
    place = ops.places_among(by_visual, remainder) - 1
    size = visual_score.shape[1]
    order = paddle.argsort(paddle.where(remainder, place, by_visual.rank + size), axis=1)
    centres = first_centres(order, place, remainder, n_centres)
    if options.cluster_keys == "misaligned":
        position = (paddle.cumsum(remainder.astype("int64"), axis=1) - 1).clip(min=0)
        taken = paddle.take_along_axis(position, centres.patch, axis=1, broadcast=False)
        similarity = key_similarity(keys, taken).transpose([0, 2, 1])
        similarity = ops.take_rows(similarity, position).transpose([0, 2, 1])
    else:
        similarity = key_similarity(keys, centres.patch)
    return merge_around(
        centres,
        similarity + options.text_weight * text_score.unsqueeze(1),
        # A centre may absorb other centres too, but not itself.
        candidates=remainder,
        others=paddle.logical_and(remainder, paddle.logical_not(centres.chosen)),
        score=visual_score,
        members=options.members,
        weights=options.merge,
        n_rest=n_rest,
        stage=int(Stage.MERGED),
        rest_stage=int(Stage.REST),
    )


METHOD = Method(
    name="recoverable",
    summary="Keeps patches that stand out, recovers those that the question asks about, and merges "
    "the remainder.",
    source="Chen et al., Recoverable Compression (AAAI 2025), section 3, and its public code",
    compress=recoverable,
    options=RecoverableOptions,
    inputs=("features", "keys", "visual_score", "patch_embeds", "text_embeds"),
    stages=(
        StageInfo("visual", "patch", "stand out in the picture"),
        StageInfo("text", "patch", "recovered for the question"),
        StageInfo("merged", "merged", "stand for similar patches"),
        StageInfo("rest", "rest", "sums up all others"),
    ),
    presets={
        "corrected": {},
        "faithful": {
            "question_source": "prompt_first_line",
            "text_pooling": "last_position",
            "patch_layernorm": False,
            "outliers": "all",
            "scaling": "float64",
            "text_scope": "all",
            "centres_of": "channels",
            "cluster_keys": "misaligned",
            "merge": "raw",
            "rest": "with_centres",
        },
    },
)
