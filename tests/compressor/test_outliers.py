"""The windowed one-dimensional outlier factor against scikit-learn's."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import paddle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.neighbors import LocalOutlierFactor

from paddle_recomp.compression import ops

Side = Literal["above_median", "all"]
KINDS = ("normal", "heavy", "softmax", "constant", "filled", "steps")


def draw(kind: str, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "normal":
        return rng.normal(size=size)
    if kind == "heavy":
        return rng.standard_cauchy(size)
    if kind == "softmax":
        logits = rng.normal(size=size) * rng.uniform(0.5, 4)
        return np.exp(logits) / np.exp(logits).sum()
    if kind == "constant":
        return np.full(size, rng.normal())
    values = rng.normal(size=size)
    if kind == "filled":
        values[rng.permutation(size)[: size // 4]] = values.min()
        return values
    return np.round(values * 2) / 2


def reference(scores: np.ndarray, neighbours: int) -> tuple[np.ndarray, bool]:
    """scikit-learn's outliers, and whether they are safe from rounding and from ties.

    Which of two different values at the same distance is a neighbour is arbitrary; a slight
    change of k or of the threshold shows whether the count hangs on such a choice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LocalOutlierFactor(n_neighbors=neighbours).fit(scores.reshape(-1, 1))
    factor = -model.negative_outlier_factor_
    return factor > 1.5, bool(np.abs(factor - 1.5).min() > 1e-6)


def count(scores: np.ndarray, neighbours: int, side: Side = "all") -> int:
    mask = paddle.ones([1, len(scores)]) > 0
    x = paddle.to_tensor(scores).unsqueeze(0)
    return int(ops.outlier_count(x, mask, neighbours, 1.5, side))


@given(
    kind=st.sampled_from(KINDS[:-1]),
    size=st.integers(2, 200),
    neighbours=st.sampled_from([1, 3, 10, 20]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=300, deadline=None)
def test_count_equals_scikit_learn(kind: str, size: int, neighbours: int, seed: int) -> None:
    scores = draw(kind, size, seed)
    outliers, safe = reference(scores, neighbours)
    assume(safe)
    assert count(scores, neighbours) == outliers.sum()


@given(kind=st.sampled_from(KINDS[:-1]), size=st.integers(2, 120), seed=st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_only_outliers_above_the_median(kind: str, size: int, seed: int) -> None:
    scores = draw(kind, size, seed)
    outliers, safe = reference(scores, 20)
    assume(safe)
    above = (outliers & (scores > np.median(scores))).sum()
    assert count(scores, 20, "above_median") == above


@given(size=st.integers(2, 120), kept=st.floats(0, 1), seed=st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_mask_equals_leaving_out(size: int, kept: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = draw("softmax", size, seed)
    mask = rng.random(size) < kept
    x, m = paddle.to_tensor(scores).unsqueeze(0), paddle.to_tensor(mask).unsqueeze(0)
    sides: tuple[Side, ...] = ("all", "above_median")
    for side in sides:
        masked = int(ops.outlier_count(x, m, 10, 1.5, side))
        alone = count(scores[mask], 10, side) if mask.any() else 0
        assert masked == alone


def test_recorded_text_scores_with_filled_minimum() -> None:
    """Hundreds of exact ties, as the faithful text step makes them."""
    rng = np.random.default_rng(7)
    scores = rng.normal(size=576) * 0.01
    scores[:300] = scores.min()
    outliers, safe = reference(scores, 20)
    assert safe
    assert outliers.sum() > 0
    assert count(scores, 20) == outliers.sum()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float32_scores_give_the_same_count(dtype: str) -> None:
    scores = draw("softmax", 576, 3).astype("float32").astype(dtype)
    outliers, safe = reference(scores.astype("float64"), 20)
    assert safe
    assert count(scores, 20) == outliers.sum() > 0


def test_a_lone_score_stands_out_from_nothing() -> None:
    assert count(np.array([3.0]), 20) == 0


@given(kept=st.integers(2, 9), seed=st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_a_handful_of_points_among_masked_ones(kept: int, seed: int) -> None:
    """Around the number of neighbours, where scikit-learn takes all others as neighbours."""
    scores = draw("heavy", 40, seed)
    mask = np.zeros(40, dtype=bool)
    mask[np.random.default_rng(seed).permutation(40)[:kept]] = True
    outliers, safe = reference(scores[mask], 3)
    assume(safe)
    x, m = paddle.to_tensor(scores).unsqueeze(0), paddle.to_tensor(mask).unsqueeze(0)
    assert int(ops.outlier_count(x, m, 3, 1.5, "all")) == outliers.sum()
