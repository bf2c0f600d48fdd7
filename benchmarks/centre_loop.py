"""The public code's form of the compressor, written from its description: one image at a time, with
scikit-learn's outlier factor and a loop over the centres, each with one product, one choice of 32
members and one weighted sum. It is the baseline for speed, and a second oracle for the `faithful`
preset."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import paddle
from sklearn.neighbors import LocalOutlierFactor

from paddle_recomp.compression import ops
from paddle_recomp.types import Tensor

MEMBERS = 32


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


def compress_by_centres(
    features: Tensor, keys: Tensor, visual_score: Tensor, text_score: Tensor
) -> LoopResult:
    """features and keys [N, C], both scores [N] -> the kept patches and tokens of one image."""
    size, width = features.shape
    visual = _top(visual_score, int(size * outlier_ratio(visual_score, 20)))
    text_score = text_score.clone()
    if len(visual):
        text_score[visual] = text_score.min()
    text = _top(text_score, int((size - len(visual)) * outlier_ratio(text_score, 20)))

    is_left = np.ones(size, dtype=bool)
    for chosen in (visual, text):
        is_left[chosen.numpy()] = False
    left = paddle.to_tensor(np.flatnonzero(is_left))
    kept = paddle.to_tensor(np.flatnonzero(~is_left))
    tokens = [features.index_select(kept)] if len(kept) else []
    remainder, score = features.index_select(left), visual_score.index_select(left)
    # With more channels than remaining patches the public code fails here; clamped instead.
    centres = _top(score, min(int(width * outlier_ratio(score, 10)), len(left)))
    if len(centres):
        bonus = 50 * text_score.index_select(left)
        tokens += _merged(remainder, keys[: len(left)], score, bonus, centres.tolist())
        others = score.clone()
        others[centres] = 0.0
        if len(centres) < len(left):
            tokens.append(paddle.matmul(others.unsqueeze(0), remainder))
    return LoopResult(
        *(sorted(visual.tolist()), sorted(text.tolist()), left.index_select(centres).tolist()),
        paddle.concat(tokens) if tokens else features[:0],
    )


def _top(scores: Tensor, count: int) -> Tensor:
    return paddle.topk(scores, count)[1] if count else paddle.zeros([0], dtype="int64")


def _merged(
    features: Tensor, keys: Tensor, score: Tensor, bonus: Tensor, centres: list[int]
) -> list[Tensor]:
    """The token [1, C] of each centre: features and keys [R, C], score and bonus [R] of the
    remainder. The keys are the first R of all patches: the public code indexes the keys of all
    patches by positions in the remainder."""
    lengths = ops.length(keys.unsqueeze(0)).squeeze(0)
    tokens = []
    for centre in centres:
        similarity = paddle.matmul(keys, keys[centre]) / lengths / lengths[centre] + bonus
        similarity[centre] = float("-inf")
        members = paddle.topk(similarity, min(MEMBERS, len(features) - 1))[1]
        weights = score.index_select(members).unsqueeze(0)
        of_members = paddle.matmul(weights, features.index_select(members))
        tokens.append(features[centre : centre + 1] + of_members)
    return tokens
