"""Invariants of every method: budgets, batches, provenance, and sane edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_recomp.compression.config import PRESETS, preset
from paddle_recomp.compression.eager import compress
from paddle_recomp.compression.registry import METHODS
from paddle_recomp.config import TokenBudget
from paddle_recomp.errors import ConfigError, FeatureError
from paddle_recomp.types import Compressed, Stage, VisionFeatures

from .conftest import random_vision

ANY_CONFIG = [("faithful", "recoverable"), *(("corrected", name) for name in METHODS)]


def as_numpy(out: Compressed) -> Compressed:
    return Compressed(*(x.numpy() for x in out))


def one(vision: VisionFeatures, i: int) -> VisionFeatures:
    return VisionFeatures(*(x if x is None else x[i : i + 1] for x in vision))


def test_counts_differ_within_a_batch() -> None:
    """What the next test is about does happen."""
    for name in PRESETS:
        vision, text = random_vision(seed=5, batch=6)
        assert len(set(compress(vision, text, preset(name)).count.tolist())) >= 4


@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(2, 6),
    patches=st.sampled_from([7, 49, 64]),
    setting=st.sampled_from(ANY_CONFIG),
    budget=st.sampled_from([TokenBudget(), TokenBudget(max_tokens=9), TokenBudget(tokens=6)]),
)
@settings(max_examples=60, deadline=None)
def test_a_batch_equals_its_singles(
    seed: int, batch: int, patches: int, setting: tuple[str, str], budget: TokenBudget
) -> None:
    vision, text = random_vision(seed, batch, patches)
    config = preset(setting[0], method=setting[1])
    together = as_numpy(compress(vision, text, config, budget))
    for i in range(batch):
        alone = as_numpy(compress(one(vision, i), text[i : i + 1], config, budget))
        n = int(alone.count[0])
        assert together.count[i] == n
        for field in ("index", "stage", "centre"):
            np.testing.assert_array_equal(
                getattr(together, field)[i, :n], getattr(alone, field)[0, :n]
            )
            assert (getattr(together, field)[i, n:] == -1).all()
        np.testing.assert_array_equal(together.owner[i], alone.owner[0])
        np.testing.assert_allclose(together.tokens[i, :n], alone.tokens[0, :n], atol=1e-5)
        assert (together.tokens[i, n:] == 0).all()


@given(
    seed=st.integers(0, 10_000),
    patches=st.sampled_from([1, 2, 5, 49, 64]),
    config=st.sampled_from(ANY_CONFIG),
    tokens=st.integers(1, 64),
    exact=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_budgets_and_provenance(
    seed: int, patches: int, config: tuple[str, str], tokens: int, exact: bool
) -> None:
    vision, text = random_vision(seed, batch=2, patches=patches)
    tokens = min(tokens, patches)
    budget = TokenBudget(tokens=tokens) if exact else TokenBudget(max_tokens=tokens)
    out = as_numpy(compress(vision, text, preset(config[0], method=config[1]), budget))
    assert np.isfinite(out.tokens).all()
    assert out.tokens.shape[1] == out.count.max()
    for i in range(2):
        n = out.count[i]
        assert (n == tokens) if exact else (1 <= n <= tokens)
        index, stage, owner = out.index[i, :n], out.stage[i, :n], out.owner[i]
        kept = index[index >= 0]
        assert (np.diff(kept) > 0).all(), "kept patches ascend"
        kinds = np.array([s.kind for s in METHODS[config[1]].stages])[stage]
        np.testing.assert_array_equal(index >= 0, kinds == "patch")
        assert sorted(kinds, key=["patch", "merged", "rest"].index) == kinds.tolist()
        tokens_kept = out.tokens[i, :n][index >= 0]
        np.testing.assert_array_equal(tokens_kept, vision.features[i].numpy()[kept])
        np.testing.assert_array_equal(owner[kept], np.flatnonzero(index >= 0))
        assert owner.max() < n
        for row in np.flatnonzero(kinds == "merged"):
            assert owner[out.centre[i, row]] == row
        if (kinds == "rest").any():
            assert (owner >= 0).all(), "nothing is lost once there is a rest token"


def test_owner_is_the_most_similar_centre_that_absorbed_the_patch() -> None:
    vision, text = random_vision(seed=3, patches=64)
    config = preset("corrected", members=40, text_weight=0.0)
    out = as_numpy(compress(vision, text, config, TokenBudget(tokens=40)))
    rows = np.flatnonzero(out.stage[0] == Stage.MERGED)
    assert len(rows) >= 2
    keys = vision.keys.numpy()[0]
    keys = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    centres = out.centre[0, rows]
    kept = out.index[0][out.index[0] >= 0]
    members = np.setdiff1d(np.arange(64), np.concatenate([kept, centres]))
    # With 40 members for fewer than 40 left, every centre absorbs every patch.
    best = rows[(keys[members] @ keys[centres].T).argmax(axis=1)]
    np.testing.assert_array_equal(out.owner[0, members], best)


def test_normalised_merges_keep_the_scale_of_a_token() -> None:
    vision, text = random_vision(seed=3)
    constant = vision._replace(features=paddle.full_like(vision.features, 2.0))
    out = as_numpy(compress(constant, text, preset("corrected"), TokenBudget(tokens=20)))
    assert {Stage.MERGED, Stage.REST} <= set(out.stage[0].tolist())
    np.testing.assert_allclose(out.tokens, 2.0, rtol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("patches", [1, 3, 8, 49])
def test_nothing_passes_the_filter(name: str, patches: int) -> None:
    """Constant scores have no outliers; an answer still needs at least one token."""
    vision, text = random_vision(seed=1, batch=2, patches=patches)
    flat = vision._replace(
        visual_score=paddle.full_like(vision.visual_score, 1 / patches),
        patch_embeds=paddle.ones_like(vision.patch_embeds),
    )
    out = as_numpy(compress(flat, text, preset(name)))
    assert (out.count == 1).all()
    assert np.isfinite(out.tokens).all()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("budget", [TokenBudget(), TokenBudget(tokens=20)])
def test_everything_passes_the_filter(name: str, budget: TokenBudget) -> None:
    """Nothing remains to be recovered or merged."""
    vision, text = random_vision(seed=4, batch=2, patches=49)
    config = preset(name, outliers="all", outlier_threshold=0.0)
    out = as_numpy(compress(vision, text, config, budget))
    assert (out.count == (budget.tokens or 49)).all()
    assert (out.stage == Stage.VISUAL).sum() >= 2 * 19
    assert np.isfinite(out.tokens).all()


@given(
    seed=st.integers(0, 10_000),
    patches=st.sampled_from([1, 2, 7, 49, 64]),
    config=st.sampled_from([*((name, None) for name in PRESETS), *ANY_CONFIG]),
    threshold=st.sampled_from([1.5, 1.1, 0.0]),
    budget=st.sampled_from([TokenBudget(full=True), TokenBudget(ratio=1.0), None]),
)
@settings(max_examples=150, deadline=None)
def test_a_budget_of_all_patches_is_the_features(
    seed: int,
    patches: int,
    config: tuple[str, str | None],
    threshold: float,
    budget: TokenBudget | None,
) -> None:
    """Whatever the filter finds: also where its groups have as many tokens as there are patches."""
    vision, text = random_vision(seed, batch=3, patches=patches)
    chosen = preset(config[0]) if config[1] is None else preset(config[0], method=config[1])
    if "outlier_threshold" in METHODS[chosen.method].option_names:
        chosen = chosen.with_options(outlier_threshold=threshold)
    out = as_numpy(compress(vision, text, chosen, budget or TokenBudget(tokens=patches)))
    everything = np.tile(np.arange(patches), (3, 1))
    assert (out.count == patches).all()
    np.testing.assert_array_equal(out.index, everything)
    np.testing.assert_array_equal(out.owner, everything)
    np.testing.assert_array_equal(out.tokens, vision.features.numpy())
    assert (out.stage == 0).all()
    assert (out.centre == -1).all()


@given(
    seed=st.integers(0, 10_000),
    method=st.sampled_from(["recoverable", "prumerge"]),
    scale=st.sampled_from([0.0, 1e-45, 1e-40, 1e-38, 1e-33, 1e-31, 1e-29, 1e-20, 1e-12]),
)
@settings(max_examples=60, deadline=None)
def test_scores_that_underflow_leave_tokens_their_scale(
    seed: int, method: str, scale: float
) -> None:
    """A few patches have all the attention; that of the others is next to nothing."""
    vision, text = random_vision(seed, batch=2, patches=49)
    score = vision.visual_score.numpy().astype(np.float64)
    low = score < np.sort(score, axis=1)[:, -6:-5]
    score = np.where(low, score * scale, score).astype(np.float32)
    constant = vision._replace(
        features=paddle.full_like(vision.features, 2.0), visual_score=paddle.to_tensor(score)
    )
    config = preset("corrected", method=method)
    for budget in (TokenBudget(), TokenBudget(tokens=9), TokenBudget(tokens=1)):
        out = as_numpy(compress(constant, text, config, budget))
        for tokens, count in zip(out.tokens, out.count, strict=True):
            np.testing.assert_allclose(tokens[:count], 2.0, rtol=1e-5)


def test_a_rest_without_scores_is_the_mean_of_its_patches() -> None:
    vision, text = random_vision(seed=0, patches=16)
    nothing = vision._replace(visual_score=paddle.zeros_like(vision.visual_score))
    out = as_numpy(compress(nothing, text, preset("corrected", method="prumerge"), TokenBudget(1)))
    np.testing.assert_allclose(out.tokens[0, 0], vision.features.numpy()[0].mean(0), atol=1e-6)


def test_vectors_without_length_are_like_nothing() -> None:
    """A cosine with them is 0, not NaN."""
    vision, text = random_vision(seed=3, patches=49)
    empty = vision._replace(keys=vision.keys * 0, patch_embeds=vision.patch_embeds * 0)
    for name, method in ANY_CONFIG:
        for question in (text, text * 0):
            for budget in (TokenBudget(), TokenBudget(tokens=9)):
                out = compress(empty, question, preset(name, method=method), budget)
                assert np.isfinite(out.tokens.numpy()).all()


def test_ties_go_to_the_first_patches() -> None:
    vision, text = random_vision(seed=0, patches=256)
    flat = vision._replace(visual_score=paddle.full_like(vision.visual_score, 1 / 256))
    config = preset("corrected", method="visual")
    kept = as_numpy(compress(flat, text, config, TokenBudget(tokens=40))).index[0]
    np.testing.assert_array_equal(kept, np.arange(40))


def test_uniform_spreads_in_both_directions() -> None:
    vision, text = random_vision(seed=0, patches=256)
    config = preset("corrected", method="uniform")
    kept = as_numpy(compress(vision, text, config, TokenBudget(tokens=64))).index[0]
    np.testing.assert_array_equal(np.unique(kept // 16), np.arange(0, 16, 2))
    np.testing.assert_array_equal(np.unique(kept % 16), np.arange(0, 16, 2))


def drawn(
    vision: VisionFeatures, text: paddle.Tensor, seed: int = 0, tokens: int = 16
) -> list[tuple[int, ...]]:
    config = preset("corrected", method="random", seed=seed)
    out = as_numpy(compress(vision, text, config, TokenBudget(tokens=tokens)))
    return [tuple(row) for row in out.index.tolist()]


def test_random_draws_for_every_question_every_picture_and_every_seed() -> None:
    vision, text = random_vision(seed=0, batch=40)
    first = VisionFeatures(*(x if x is None else x[:1].tile([40, 1, 1][: x.ndim]) for x in vision))
    assert len(set(drawn(first, text))) == 40, "40 questions about one picture"
    one_question = text[:1].tile([40, 1])
    assert len(set(drawn(vision, one_question))) == 40, "one question about 40 pictures"
    seeds = [drawn(one(vision, 0), text[:1], seed)[0] for seed in range(-20, 20)]
    assert len(set(seeds)) == 40
    assert drawn(one(vision, 3), text[3:4]) == drawn(vision, text)[3:4]


def test_random_draws_every_patch_equally_often() -> None:
    """A quarter of 64 patches, 1000 times: each patch 250 times, give or take five deviations."""
    vision, text = random_vision(seed=1, batch=1000, width=4)
    times = np.bincount(np.array(drawn(vision, text)).ravel(), minlength=64)
    assert np.abs(times - 250).max() < 5 * np.sqrt(1000 * 0.25 * 0.75)
    together = np.zeros((64, 64))
    for row in drawn(vision, text):
        together[np.ix_(row, row)] += 1
    pairs = together[np.triu_indices(64, 1)]
    chance = 16 / 64 * 15 / 63
    assert np.abs(pairs - 1000 * chance).max() < 5.5 * np.sqrt(1000 * chance * (1 - chance))


def test_random_survives_the_rounding_of_another_runtime() -> None:
    vision, text = random_vision(seed=2, batch=200, width=4, joint=256)
    noise = paddle.to_tensor(
        (1 + np.random.default_rng(0).normal(size=text.shape) * 1e-6).astype(np.float32)
    )
    nearly = vision._replace(visual_score=vision.visual_score * (1 + 3e-7))
    same = zip(drawn(vision, text), drawn(nearly, text * noise), strict=True)
    assert sum(a != b for a, b in same) <= 1


@pytest.mark.parametrize("field", ["features", "keys", "visual_score", "patch_embeds"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_features_are_refused(field: str, value: float) -> None:
    vision, text = random_vision(seed=0)
    broken = getattr(vision, field).clone()
    broken[0, 3] = value
    with pytest.raises(FeatureError, match=field):
        compress(vision._replace(**{field: broken}), text)


def test_numbers_whose_sum_is_infinite_are_finite() -> None:
    vision, text = random_vision(seed=0)
    large = vision._replace(keys=paddle.full_like(vision.keys, 3e38))
    assert int(compress(large, text, budget=TokenBudget(tokens=9)).count[0]) == 9


def test_bad_budgets_are_refused() -> None:
    vision, text = random_vision(seed=0)
    with pytest.raises(ConfigError, match=r"100.*64 patches"):
        compress(vision, text, budget=TokenBudget(tokens=100))
    options: tuple[dict[str, Any], ...] = (
        {"tokens": 0},
        {"max_tokens": -3},
        {"tokens": 3, "max_tokens": 3},
        {"tokens": 3, "full": True},
        {"ratio": 0.5, "tokens": 3},
        {"ratio": 0.0},
        {"ratio": 1.5},
        {"ratio": float("nan")},
        {"ratio": "half"},
        {"ratio": True},
        {"full": "no"},
        {"full": None},
    )
    for bad in options:
        with pytest.raises(ConfigError):
            TokenBudget(**bad)


@pytest.mark.parametrize(
    ("ratio", "patches", "tokens"), [(0.125, 256, 32), (0.1, 576, 58), (1, 64, 64), (0.001, 64, 1)]
)
def test_a_ratio_is_a_number_of_tokens(ratio: float, patches: int, tokens: int) -> None:
    assert TokenBudget(ratio=ratio).bounds(patches) == [(tokens, tokens)]


def test_unknown_names_are_refused() -> None:
    vision, text = random_vision(seed=0)
    with pytest.raises(ConfigError, match=r"magic.*recoverable"):
        compress(vision, text, preset("corrected", method="magic"))
    with pytest.raises(ConfigError, match=r"paper.*faithful"):
        preset("paper")
    with pytest.raises(ConfigError, match=r"colour.*text_weight"):
        preset("corrected", colour="red")
    with pytest.raises(ConfigError, match=r"attention.*concat"):
        preset("corrected", attention="sideways")
    with pytest.raises(ConfigError, match="members"):
        preset("corrected", members=0)
