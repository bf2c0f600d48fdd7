"""Threads that share a model: each gets what it gets alone, whatever runs the graphs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest

from paddle_recomp.backends.onnx import OnnxBackend
from paddle_recomp.backends.sessions import open_session
from paddle_recomp.bundle import Bundle
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.types import Answer
from paddle_recomp.vlm.demo import demo_folder, demo_pictures
from paddle_recomp.vlm.feature_cache import FeatureCache
from paddle_recomp.vlm.loading import load
from paddle_recomp.vlm.vlm import VLM
from tests.threads import at_once

Fresh = Callable[[FeatureCache | None], VLM]

ASKED = [questions[i % 2] for i, questions in enumerate(demo_pictures().values())]
BUDGET = TokenBudget(tokens=24)
SHORT = GenerationConfig(max_new_tokens=6)


@pytest.fixture(scope="module", params=["eager", "onnx", "paddle"])
def fresh(request: pytest.FixtureRequest, paddle_bundle: Bundle) -> Fresh:
    """A model that has run nothing yet."""

    def make(cache: FeatureCache | None = None) -> VLM:
        if request.param == "eager":
            folder = demo_folder()
            return load(folder / "llava", folder / "clip", cache=cache)
        return load(paddle_bundle.folder, backend=request.param, cache=cache)

    return make


@pytest.fixture(scope="module")
def alone(fresh: Fresh) -> list[Answer]:
    vlm = fresh(None)
    return [vlm.ask(one.picture, one.question, BUDGET, SHORT) for one in ASKED]


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("cached", [False, True])
def test_each_gets_the_answer_that_it_gets_alone(
    count: int, cached: bool, fresh: Fresh, alone: list[Answer]
) -> None:
    """Other pictures and questions at the same time; the cache is too small for all of them."""
    vlm = fresh(FeatureCache(max_bytes=2**20) if cached else None)

    def ask(thread: int) -> list[tuple[int, Answer]]:
        chosen = [(thread + turn) % len(ASKED) for turn in range(24 // count)]
        return [(i, vlm.ask(ASKED[i].picture, ASKED[i].question, BUDGET, SHORT)) for i in chosen]

    for i, answer in chain(*at_once(count, ask)):
        assert answer.token_ids == alone[i].token_ids
        (found,), (expected,) = answer.compressed, alone[i].compressed
        for name, value in expected.__dict__.items():
            np.testing.assert_array_equal(getattr(found, name), value)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that became sessions."""
    names: list[str] = []

    def noted(path: Any, *options: Any) -> Any:
        names.append(path.name)
        return open_session(path, *options)

    monkeypatch.setattr("paddle_recomp.backends.onnx.open_session", noted)
    return names


def test_a_session_is_opened_once(paddle_bundle: Bundle, opened: list[str]) -> None:
    """It holds the weights of its graph."""
    backend = OnnxBackend(paddle_bundle)
    ids = np.zeros((1, paddle_bundle.question_positions), dtype=np.int64)
    at_once(8, lambda _: backend.run("text", {"question_ids": ids}))
    assert opened == ["text.onnx"]


def test_no_question_pays_for_loading(paddle_bundle: Bundle, opened: list[str]) -> None:
    vlm = load(paddle_bundle.folder)
    parts = ["compress.onnx", "text.onnx", "vision.onnx"]
    assert sorted(opened) == parts
    vlm.ask(ASKED[0].picture, ASKED[0].question, BUDGET, SHORT)
    assert sorted(opened) == parts


def test_nor_in_paddle_inference(paddle_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = load(paddle_bundle.folder, backend="paddle")
    monkeypatch.delattr("paddle_recomp.backends.paddle_inference.Predictor")
    vlm.ask(ASKED[0].picture, ASKED[0].question, BUDGET, SHORT)
