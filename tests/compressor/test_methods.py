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


def test_everything_is_kept_when_everything_is_asked_for() -> None:
    for name, method in ANY_CONFIG:
        vision, text = random_vision(seed=2, batch=2, patches=49)
        config = preset(name, method=method)
        out = as_numpy(compress(vision, text, config, TokenBudget(full=True)))
        assert (out.count == 49).all()
        np.testing.assert_array_equal(out.index, np.tile(np.arange(49), (2, 1)))
        np.testing.assert_array_equal(out.owner, out.index)
        np.testing.assert_array_equal(out.tokens, vision.features.numpy())


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


def test_random_depends_on_its_seed_alone() -> None:
    def choice(seed: int, data_seed: int) -> list[int]:
        vision, text = random_vision(data_seed)
        config = preset("corrected", method="random", seed=seed)
        return as_numpy(compress(vision, text, config, TokenBudget(tokens=16))).index[0].tolist()

    assert choice(0, 1) == choice(0, 2)
    assert choice(0, 1) != choice(1, 1)


@pytest.mark.parametrize("field", ["features", "keys", "visual_score", "patch_embeds"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_features_are_refused(field: str, value: float) -> None:
    vision, text = random_vision(seed=0)
    broken = getattr(vision, field).clone()
    broken[0, 3] = value
    with pytest.raises(FeatureError, match=field):
        compress(vision._replace(**{field: broken}), text)


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
