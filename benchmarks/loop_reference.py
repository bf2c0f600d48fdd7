"""The public code's form of the compressor, written from its description: one image, one centre and
one member at a time, with scikit-learn's outlier factor. It is the baseline for speed, and a second
oracle for the `faithful` preset."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F  # noqa: N812
from sklearn.neighbors import LocalOutlierFactor

from paddle_recomp.types import Tensor


class LoopResult(NamedTuple):
    """Ascending patches of each group (centres by descending score), and the tokens [M, C]."""

    visual: list[int]
    text: list[int]
    centres: list[int]
    tokens: Tensor


def outlier_ratio(scores: Tensor, neighbours: int) -> float:
    """Share of outliers among scores [n]."""
    column = scores.numpy().astype(np.float64).reshape(-1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labels = LocalOutlierFactor(n_neighbors=neighbours).fit_predict(column)
    return float((labels == -1).sum() / len(column))


def compress_by_loops(
    features: Tensor, keys: Tensor, visual_score: Tensor, text_score: Tensor
) -> LoopResult:
    """features and keys [N, C], both scores [N] -> the kept patches and tokens of one image."""
    size, width = features.shape
    ratio = outlier_ratio(visual_score, 20)
    visual = _top(visual_score, int(size * ratio))
    text_score = text_score.clone()
    for patch in visual:
        text_score[patch] = text_score.min()
    ratio = outlier_ratio(text_score, 20)
    text = _top(text_score, int((size - len(visual)) * ratio))

    remainder = [patch for patch in range(size) if patch not in {*visual, *text}]
    left_score = paddle.stack([visual_score[patch] for patch in remainder])
    ratio = outlier_ratio(left_score, 10)
    # With more channels than remaining patches the public code fails here; clamped instead.
    centres = _top(left_score, min(int(width * ratio), len(remainder)))
    merged = [
        _merge(centre, remainder, features, keys, visual_score, text_score) for centre in centres
    ]
    others = [patch for place, patch in enumerate(remainder) if place not in centres]
    if centres and others:
        rest = paddle.zeros([width])
        for patch in others:
            rest = rest + visual_score[patch] * features[patch]
        merged.append(rest)
    kept = [features[patch] for patch in sorted(visual + text)]
    return LoopResult(
        sorted(visual), sorted(text), [remainder[c] for c in centres], paddle.stack(kept + merged)
    )


def _top(scores: Tensor, count: int) -> list[int]:
    return [int(i) for i in paddle.topk(scores, count)[1]] if count else []


def _merge(
    centre: int,
    remainder: list[int],
    features: Tensor,
    keys: Tensor,
    visual_score: Tensor,
    text_score: Tensor,
) -> Tensor:
    # The public code indexes the keys of all patches by positions in the remainder.
    places = [place for place in range(len(remainder)) if place != centre]
    similarity = F.cosine_similarity(keys[centre].unsqueeze(0), keys[: len(remainder)], axis=1)
    similarity = paddle.stack(
        [similarity[place] + 50 * text_score[remainder[place]] for place in places]
    )
    token = features[remainder[centre]]
    for chosen in paddle.topk(similarity, min(32, len(places)))[1]:
        patch = remainder[places[int(chosen)]]
        token = token + visual_score[patch] * features[patch]
    return token
