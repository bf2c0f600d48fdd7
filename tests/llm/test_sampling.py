"""How a token is chosen: transformers first, then what must hold of every distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paddle_recomp.config import GenerationConfig
from paddle_recomp.llm.sampling import (
    choose,
    draw,
    keep_top_k,
    keep_top_p,
    log_probabilities,
    penalise_repetition,
    probabilities,
    scale,
    warp,
)
from tests.golden.record_cases import WARPERS

GOLDEN = Path(__file__).parents[1] / "golden" / "sampling.npz"
# Few different values, so that equal logits are common.
LOGITS = arrays(np.float32, (2, 12), elements=st.sampled_from([-30.0, -2.0, 0.0, 0.5, 1.0, 9.0]))
SEEDS = st.integers(0, 2**32)


def streams(seed: int, count: int = 2) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for _ in range(count)]


@pytest.mark.parametrize("name", WARPERS)
def test_distributions_equal_those_of_transformers(name: str) -> None:
    recorded = np.load(GOLDEN)
    config = GenerationConfig(**{"temperature": 1.0, **WARPERS[name]})
    found = probabilities(warp(recorded["logits"], recorded["past"].tolist(), config))
    np.testing.assert_array_equal(found > 0, recorded[name] > 0)
    np.testing.assert_allclose(found, recorded[name], rtol=0, atol=1e-6)


def test_values_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.1, 0.4]]))
    penalised = penalise_repetition(np.array([[2.0, -1.0, 3.0]]), [[0, 1, 1]], 2.0)
    assert penalised.tolist() == [[1, -2, 3]], "a token is penalised once"
    np.testing.assert_allclose(probabilities(scale(logits, 0.5)), [[25 / 42, 1 / 42, 16 / 42]])
    np.testing.assert_allclose(probabilities(keep_top_k(logits, 2)), [[5 / 9, 0, 4 / 9]])
    np.testing.assert_allclose(probabilities(keep_top_p(logits, 0.7)), [[5 / 9, 0, 4 / 9]])
    np.testing.assert_allclose(log_probabilities(logits, np.array([2])), np.log([0.4]))


@given(LOGITS, st.floats(1e-9, 1, exclude_min=True))
def test_top_p_keeps_the_fewest_that_reach_its_mass(logits: np.ndarray, mass: float) -> None:
    likely = probabilities(logits)
    for row, kept in zip(likely, np.isfinite(keep_top_p(logits, mass)), strict=True):
        assert kept.any()
        assert row[kept].min() >= row[~kept].max(initial=0), "the likeliest are kept"
        assert row[kept].sum() >= mass - 1e-9
        fewer = np.sort(row[kept])[1:].sum()
        assert mass == 1 or fewer < mass + 1e-9, "one token fewer does not reach it"


@given(LOGITS, st.integers(1, 20))
def test_top_k_keeps_exactly_k(logits: np.ndarray, count: int) -> None:
    for row, warped in zip(logits, keep_top_k(logits, count), strict=True):
        kept = np.isfinite(warped)
        assert kept.sum() == min(count, len(row))
        assert row[kept].min() >= row[~kept].max(initial=-np.inf)
        np.testing.assert_array_equal(warped[kept], row[kept])


@given(LOGITS, st.floats(1e-300, 1e3), SEEDS)
def test_top_k_of_one_is_greedy(logits: np.ndarray, temperature: float, seed: int) -> None:
    config = GenerationConfig(temperature=temperature, top_k=1)
    greedy = choose(logits, [[], []], GenerationConfig(), [])
    np.testing.assert_array_equal(choose(logits, [[], []], config, streams(seed)), greedy)
    np.testing.assert_array_equal(greedy, logits.argmax(axis=-1))


@given(LOGITS, SEEDS)
def test_a_batch_draws_what_its_singles_draw(logits: np.ndarray, seed: int) -> None:
    together = draw(logits, streams(seed))
    alone = [draw(row[None], streams(seed, 1))[0] for row in logits]
    assert together.tolist() == alone


@given(LOGITS, st.floats(0.1, 5), st.integers(1, 12), st.floats(0.05, 1), SEEDS)
def test_only_what_was_kept_is_drawn(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    config = GenerationConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    left = warp(logits, [[], []], config)
    tokens = choose(logits, [[], []], config, streams(seed))
    assert np.isfinite(left[[0, 1], tokens]).all()


def test_tokens_come_as_often_as_they_are_likely() -> None:
    likely = np.array([0.02, 0.5, 0.0, 0.18, 0.3])
    with np.errstate(divide="ignore"):
        logits = np.log(likely)[None]
    (stream,) = streams(0, 1)
    counts = np.bincount([draw(logits, [stream])[0] for _ in range(4000)], minlength=5)
    assert counts[2] == 0
    # Five standard deviations of the likeliest.
    np.testing.assert_allclose(counts / 4000, likely, rtol=0, atol=0.04)


@given(LOGITS)
def test_log_probabilities_are_a_distribution(logits: np.ndarray) -> None:
    found = np.stack([log_probabilities(logits, np.full(2, token)) for token in range(12)])
    np.testing.assert_allclose(np.exp(found).sum(axis=0), 1)
    np.testing.assert_allclose(np.exp(found).T, probabilities(logits), atol=1e-12)


def test_nothing_changes_what_it_was_given() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    before = logits.copy()
    config = GenerationConfig(temperature=0.5, top_k=5, top_p=0.5, repetition_penalty=1.5)
    choose(logits, [[1, 2], [3]], config, streams(0))
    log_probabilities(logits, np.array([1, 2]))
    np.testing.assert_array_equal(logits, before)
