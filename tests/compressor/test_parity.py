"""The `faithful` preset against recorded runs of the authors' public code."""

from __future__ import annotations

from typing import Literal

import numpy as np
import paddle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.centre_loop import compress_by_centres
from paddle_recomp.compression import ops
from paddle_recomp.compression.config import preset
from paddle_recomp.compression.eager import compress
from paddle_recomp.compression.methods.recoverable import compress_by_scores
from paddle_recomp.config import TokenBudget
from paddle_recomp.types import Compressed, Stage, VisionFeatures

from .conftest import CASES, REFERENCE


def run_case(name: str) -> tuple[dict[str, np.ndarray], Compressed]:
    golden = dict(np.load(REFERENCE / f"{name}.npz"))
    keys = paddle.to_tensor(golden["keys"].astype("float32")).unsqueeze(0)
    hidden = paddle.to_tensor(golden["hidden"].astype("float32")).unsqueeze(0)
    config = preset("faithful")
    score = ops.class_attention(
        paddle.to_tensor(golden["q_cls"]).unsqueeze(0), keys, 1, config.towers.attention
    )
    text_score = paddle.to_tensor(golden["text_sim"]).unsqueeze(0)
    bounds = paddle.to_tensor(TokenBudget().bounds(text_score.shape[1]))
    out = compress_by_scores(hidden[:, 1:], keys[:, 1:], score, text_score, bounds, config.options)
    return golden, Compressed(*(x.numpy()[0] for x in out))


def test_there_are_recorded_cases() -> None:
    assert len(CASES) == 7


@pytest.mark.parametrize("name", CASES)
def test_faithful_equals_the_public_code(name: str) -> None:
    golden, out = run_case(name)
    kept = {stage: out.index[out.stage == stage] for stage in (Stage.VISUAL, Stage.TEXT)}
    np.testing.assert_array_equal(kept[Stage.VISUAL], np.sort(golden["visual_index"]))
    np.testing.assert_array_equal(kept[Stage.TEXT], np.sort(golden["text_index"]))
    remainder = np.setdiff1d(
        np.arange(len(golden["text_sim"])),
        np.concatenate([golden["visual_index"], golden["text_index"]]),
    )
    np.testing.assert_array_equal(
        out.centre[out.stage == Stage.MERGED], remainder[golden["centre_index"]]
    )
    assert out.tokens.shape == golden["tokens"].shape
    scale = np.abs(golden["tokens"]).max(axis=1, keepdims=True)
    assert (np.abs(out.tokens - golden["tokens"]) / scale).max() < 1e-5


def test_text_score_is_scaled_cosine() -> None:
    rng = np.random.default_rng(0)
    text, patches = rng.normal(size=(2, 24)), rng.normal(size=(2, 9, 24))
    cosine = np.einsum("bp,bnp->bn", text, patches)
    cosine /= np.linalg.norm(text, axis=1)[:, None] * np.linalg.norm(patches, axis=2)
    found = ops.cosine_scores(paddle.to_tensor(text), paddle.to_tensor(patches)).numpy()
    np.testing.assert_allclose(found, cosine / np.sqrt(24), rtol=1e-6)


@pytest.mark.parametrize("mode", ["concat", "heads"])
def test_class_attention_modes(mode: Literal["concat", "heads"]) -> None:
    rng = np.random.default_rng(1)
    query, keys, heads = rng.normal(size=(2, 12)), rng.normal(size=(2, 6, 12)), 3
    splits = 1 if mode == "concat" else heads
    q = query.reshape(2, splits, -1)
    k = keys.reshape(2, 6, splits, -1)
    logits = np.einsum("bhd,bnhd->bhn", q, k) / np.sqrt(q.shape[-1])
    attention = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = ops.class_attention(paddle.to_tensor(query), paddle.to_tensor(keys), heads, mode)
    np.testing.assert_allclose(found.numpy(), attention.mean(1)[:, 1:], rtol=1e-6)


def test_text_sign_reverses_what_is_recovered() -> None:
    """A question that matches exactly the last four patches recovers them, or with the sign
    reversed none of them."""
    rng = np.random.default_rng(2)
    patches = rng.normal(size=(1, 64, 8)) * 0.1
    text = np.zeros((1, 8))
    text[0, 0] = 1
    patches[0, :, 0] = 0.0
    patches[0, -4:, 0] = 5.0
    score = rng.uniform(0.99, 1.01, size=(1, 64)) / 64
    blank = rng.normal(size=(1, 64, 8))
    vision = VisionFeatures(*(paddle.to_tensor(x) for x in (blank, blank, score, patches)))
    found = {}
    for sign in (1, -1):
        config = preset("corrected", text_sign=sign)
        out = compress(vision, paddle.to_tensor(text), config)
        found[sign] = set(out.index.numpy()[out.stage.numpy() == Stage.TEXT].tolist())
    assert {60, 61, 62, 63} <= found[1]
    assert not {60, 61, 62, 63} & found[-1]


@given(
    seed=st.integers(0, 2**31),
    patches=st.sampled_from([36, 49, 100, 196, 256]),
    width=st.sampled_from([24, 64]),
    sharpness=st.floats(0.2, 3),
)
@settings(max_examples=40, deadline=None)
def test_faithful_equals_a_loop_of_its_form(
    seed: int, patches: int, width: int, sharpness: float
) -> None:
    """Beyond the recorded cases: any size, also those where float64 ratios truncate."""
    rng = np.random.default_rng(seed)
    features, keys = (rng.normal(size=(patches, width)).astype("float32") for _ in range(2))
    logits = rng.normal(size=patches) * sharpness
    score = (np.exp(logits) / np.exp(logits).sum()).astype("float32")
    text_score = (rng.normal(size=patches) * 0.02).astype("float32")
    text_score[rng.permutation(patches)[: patches // 16]] += 0.2
    inputs = [paddle.to_tensor(x) for x in (features, keys, score, text_score)]
    loop = compress_by_centres(*inputs)
    f, k, v, t = (x.unsqueeze(0) for x in inputs)
    bounds = paddle.to_tensor(TokenBudget().bounds(patches))
    batched = compress_by_scores(f, k, v, t, bounds, preset("faithful").options)
    ours = Compressed(*(x.numpy()[0] for x in batched))
    assume(loop.visual or loop.text)  # ours keeps one token where the public code keeps none
    assert ours.index[ours.stage == Stage.VISUAL].tolist() == loop.visual
    assert ours.index[ours.stage == Stage.TEXT].tolist() == loop.text
    assert ours.centre[ours.stage == Stage.MERGED].tolist() == loop.centres
    np.testing.assert_allclose(ours.tokens, loop.tokens.numpy(), atol=1e-4)
