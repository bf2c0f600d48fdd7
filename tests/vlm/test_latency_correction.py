"""The correction of a latency profile compares like with like, in every kind of question; on a
machine whose times are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import ConfigError, ContextLengthError
from paddle_recomp.types import Answer
from paddle_recomp.vlm.cached_backend import CachedBackend
from paddle_recomp.vlm.conversation import Mode
from paddle_recomp.vlm.demo import demo_pictures
from paddle_recomp.vlm.feature_cache import FeatureCache
from paddle_recomp.vlm.front_end import SeenImage
from paddle_recomp.vlm.loading import load
from paddle_recomp.vlm.vlm import VLM
from tests.vlm.slow_machine import SlowMachine

PICTURES = list(demo_pictures())[:3]
QUESTIONS = ["what digit is red?", "where is the circle?", "what shape is blue?", "how many?"]
SHORT = GenerationConfig(max_new_tokens=3)
MODES: tuple[Mode, ...] = ("recompress", "append", "keep")
AMPLE = TokenBudget(ttft_ms=1e9)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    """The embedded bundle, which is faster than its checkpoint."""
    return load("demo")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SlowMachine:
    return SlowMachine(monkeypatch)


@pytest.fixture(scope="module")
def profile(vlm: VLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of what was measured on it."""
    file = tmp_path_factory.mktemp("latency") / "profile.json"
    with pytest.MonkeyPatch.context() as patch:
        slow = SlowMachine(patch).slow(vlm)
        VLM(slow.front_end, slow.answerer, file).latency()
    return file


@pytest.fixture
def slow(machine: SlowMachine, vlm: VLM, profile: Path) -> VLM:
    """On a machine that is measured already."""
    slow = machine.slow(vlm)
    slow.latency_file = profile
    slow.latency()
    return slow


@pytest.fixture(scope="module")
def seen(vlm: VLM) -> list[SeenImage]:
    return vlm.front_end.see(PICTURES)


def positions_of(vlm: VLM, answer: Answer) -> int:
    return answer.prefilled - answer.num_visual_tokens


def test_a_measured_profile_is_the_machine(machine: SlowMachine, slow: VLM) -> None:
    profile = slow.latency().profile
    assert profile.vision == pytest.approx(machine.vision(1))
    assert profile.question == pytest.approx(machine.text())
    for tokens in (1, 5, 100, 256):
        expected = machine.text() + machine.compress(tokens) + machine.reading(40 + tokens, 70)
        assert profile.first_token(tokens, 40, 1, past=70) == pytest.approx(expected)
    for positions in (1, 4, 8, 20, 300, 900):
        for past in (0, 10, 200, 800):
            expected = machine.reading(positions, past)
            assert profile.reading(positions, past) == pytest.approx(expected)


@pytest.mark.parametrize("speed", [1.0, 0.25])
@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_a_conversation_tells_the_pace_of_the_machine(
    mode: Mode, images: int, speed: float, machine: SlowMachine, slow: VLM, seen: list[SeenImage]
) -> None:
    """Whatever of a question is compressed anew, kept, read again or in the KV cache."""
    machine.speed = speed
    for _ in range(3):
        chat = slow.chat(seen[:images], mode)
        for question in QUESTIONS[:3]:
            chat.ask(question, AMPLE, SHORT)
    assert slow.latency().pace() == pytest.approx(1 / speed if images else 1)


@pytest.mark.parametrize("mode", MODES)
def test_the_next_target_is_met_after_any_conversation(
    mode: Mode, machine: SlowMachine, slow: VLM, seen: list[SeenImage]
) -> None:
    """One that has met its target exactly meets it again; in `keep` the further questions were so
    quick that the next one got too many tokens."""
    budget = TokenBudget(ttft_ms=25e3)
    first = slow.ask(seen[0], QUESTIONS[0], budget, SHORT)
    assert 1 < first.num_visual_tokens < 256
    assert 24.8 < first.timing.first_token <= 25
    chat = slow.chat(seen[0], mode)
    # More than the last questions that a correction remembers, where they are quick.
    for number in range(36 if mode == "keep" else 9):
        chat.ask(QUESTIONS[number % 4], AMPLE, SHORT)
    assert slow.latency().pace() == pytest.approx(1)
    again = slow.ask(seen[0], QUESTIONS[0], budget, SHORT)
    assert again.num_visual_tokens == first.num_visual_tokens
    assert again.timing.first_token <= 25


@pytest.mark.parametrize("mode", ["recompress", "append"])
def test_a_target_holds_deep_in_a_conversation(
    mode: Mode, machine: SlowMachine, slow: VLM, seen: list[SeenImage]
) -> None:
    """Reading behind a long KV cache takes longer than reading as much alone."""
    chat = slow.chat(seen[0], mode)
    chat.ask(QUESTIONS[0], TokenBudget(tokens=120), SHORT)
    budget = TokenBudget(ttft_ms=18e3)
    for question in QUESTIONS[1:]:
        answer = chat.ask(question, budget, SHORT)
        assert answer.num_visual_tokens > 1
        assert answer.timing.first_token <= 18


def test_a_kept_question_is_not_refused_for_what_it_does_not_do(
    machine: SlowMachine, slow: VLM, seen: list[SeenImage]
) -> None:
    chat = slow.chat(seen[0], "keep")
    first = chat.ask(QUESTIONS[0], TokenBudget(tokens=20), SHORT)
    quick = TokenBudget(ttft_ms=4e3)
    with pytest.raises(ConfigError, match="ttft_ms is 4000; on this machine"):
        slow.ask(seen[0], QUESTIONS[1], quick, SHORT)
    machine.ran.clear()
    answer = chat.ask(QUESTIONS[1], quick, SHORT)
    assert set(machine.ran) <= {"extend", "decode"}
    assert answer.timing.first_token <= 4
    assert answer.num_visual_tokens == first.num_visual_tokens


def test_batches_and_other_budgets_leave_the_pace_alone(
    machine: SlowMachine, slow: VLM, seen: list[SeenImage]
) -> None:
    machine.speed = 0.1
    slow.ask(seen[0], QUESTIONS[0], TokenBudget(tokens=9), SHORT)
    slow.ask_batch(seen, QUESTIONS[:3], TokenBudget(tokens=9), SHORT)
    assert slow.latency().pace() == pytest.approx(1)
    machine.ran.clear()
    for budget in (AMPLE, TokenBudget(ttft_ms=1e9, max_tokens=9)):
        with pytest.raises(ConfigError, match="one question at a time"):
            slow.ask_batch([PICTURES[0], []], QUESTIONS[:2], [TokenBudget(), budget], SHORT)
    assert not machine.ran, "said before a picture is seen"


Cached = tuple[VLM, FeatureCache]


@pytest.fixture
def cached(machine: SlowMachine, vlm: VLM, seen: list[SeenImage]) -> Cached:
    """The slow machine with a cache of features that lies in memory."""
    slow, cache = machine.slow(vlm), FeatureCache()
    shapes = {name: value.shape[1:] for name, value in seen[0].features.items()}
    backend = CachedBackend(slow.front_end.backend, cache, "tower", shapes)
    return VLM(replace(slow.front_end, backend=backend), slow.answerer), cache


def test_a_cache_has_no_part_in_measuring(cached: Cached, machine: SlowMachine) -> None:
    """Neither are pictures taken from it, nor are any left there."""
    vlm, cache = cached
    profile = vlm.latency().profile
    assert cache.num_bytes == 0
    assert profile.vision == pytest.approx(machine.vision(1))
    another = VLM(vlm.front_end, vlm.answerer)
    assert another.latency().profile.vision == pytest.approx(machine.vision(1))


def test_a_picture_in_the_cache_needs_no_time_to_be_seen(
    cached: Cached, machine: SlowMachine
) -> None:
    vlm, _ = cached
    vlm.latency()
    budget = TokenBudget(ttft_ms=19e3)
    with pytest.raises(ConfigError, match=r"20000\.0 for seeing 1 picture,"):
        vlm.ask(PICTURES[0], QUESTIONS[0], budget, SHORT)
    vlm.see(PICTURES[0])
    machine.ran.clear()
    answer = vlm.ask(PICTURES[0], QUESTIONS[0], budget, SHORT)
    assert "vision" not in machine.ran
    assert 18.8 < answer.timing.first_token <= 19
    with pytest.raises(ConfigError, match=r"20000\.0 for seeing 1 picture,"):
        vlm.ask(PICTURES[:2], QUESTIONS[0], budget, SHORT)
    for _ in range(9):
        vlm.ask(PICTURES[0], QUESTIONS[0], AMPLE, SHORT)
    assert vlm.latency().pace() == pytest.approx(1)


def test_a_picture_that_is_given_twice_is_seen_once(slow: VLM) -> None:
    budget = TokenBudget(ttft_ms=39e3)
    answer = slow.ask([PICTURES[0], PICTURES[0]], QUESTIONS[0], budget, SHORT)
    assert answer.timing.first_token <= 39
    with pytest.raises(ConfigError, match="for seeing 2 pictures"):
        slow.ask(PICTURES[:2], QUESTIONS[0], budget, SHORT)


def with_context(vlm: VLM, context: int) -> VLM:
    """The same model, whose conversations may have so many positions."""
    vlm.answerer.model.context = context  # type: ignore[misc]
    return vlm


def test_a_time_chooses_no_more_than_the_context_holds(
    machine: SlowMachine, vlm: VLM, seen: list[SeenImage]
) -> None:
    """Also for a machine that is measured with it."""
    slow = with_context(machine.slow(vlm), 120)
    answer = slow.ask(seen[0], QUESTIONS[0], AMPLE, SHORT)
    words = positions_of(slow, answer)
    assert answer.num_visual_tokens == 120 - words - 3
    two = slow.ask(seen[:2], QUESTIONS[0], AMPLE, GenerationConfig(max_new_tokens=20))
    assert two.prefilled == 120 - 20
    with pytest.raises(ContextLengthError, match="the text has to be shorter"):
        slow.ask(seen[0], QUESTIONS[0], AMPLE, GenerationConfig(max_new_tokens=119))


@pytest.mark.parametrize("mode", MODES)
def test_a_conversation_has_room_for_what_a_time_chooses(
    mode: Mode, machine: SlowMachine, vlm: VLM, seen: list[SeenImage]
) -> None:
    slow = with_context(machine.slow(vlm), 160)
    chat = slow.chat(seen[0], mode)
    chat.ask(QUESTIONS[0], TokenBudget(tokens=60), SHORT)
    for question in QUESTIONS[1:3]:
        answer = chat.ask(question, AMPLE, SHORT)
        assert answer.num_visual_tokens >= 1


LIMITS: list[tuple[float, int | None, Callable[[int], int]]] = [
    (1e9, 50, lambda fit: 50),
    (25e3, 256, lambda fit: fit),
    (25e3, 9999, lambda fit: fit),
    (25e3, 3, lambda fit: 3),
    (1e9, None, lambda fit: 256),
]


@pytest.mark.parametrize(("ttft_ms", "most", "expected"), LIMITS)
def test_a_time_with_a_limit(
    ttft_ms: float,
    most: int | None,
    expected: Callable[[int], int],
    slow: VLM,
    seen: list[SeenImage],
) -> None:
    """As many as fit the time, and at most so many."""
    fit = slow.ask(seen[0], QUESTIONS[0], TokenBudget(ttft_ms=25e3), SHORT).num_visual_tokens
    budget = TokenBudget(ttft_ms=ttft_ms, max_tokens=most)
    for answer in (
        slow.ask(seen[0], QUESTIONS[0], budget, SHORT),
        slow.chat(seen[0]).ask(QUESTIONS[0], budget, SHORT),
    ):
        assert answer.num_visual_tokens == expected(fit)
    if most == 3:
        shared = slow.ask(seen[:2], QUESTIONS[0], budget, SHORT)
        assert [int(one.count[0]) for one in shared.compressed] == [2, 1]


def test_a_limit_that_pictures_cannot_share(machine: SlowMachine, slow: VLM) -> None:
    machine.ran.clear()
    for budget in (TokenBudget(ttft_ms=1e9, max_tokens=1), TokenBudget(tokens=1)):
        with pytest.raises(ConfigError, match="is 1, which 2 images cannot share"):
            slow.ask(PICTURES[:2], QUESTIONS[0], budget, SHORT)
    assert not machine.ran, "said before a picture is seen"


@pytest.mark.parametrize(
    "options",
    [
        {"ttft_ms": 9.0, "tokens": 3},
        {"ttft_ms": 9.0, "full": True},
        {"ttft_ms": 9.0, "ratio": 0.5},
        {"ttft_ms": 9.0, "max_tokens": 3, "tokens": 3},
    ],
)
def test_other_budgets_have_no_time(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        TokenBudget(**options)  # type: ignore[arg-type]


def test_what_is_read_is_measured_without_harm(slow: VLM, seen: list[SeenImage]) -> None:
    """Measuring leaves the language model as it was."""
    answer = slow.ask(seen[0], QUESTIONS[0], TokenBudget(tokens=20), SHORT)
    slow.latency()
    again = slow.ask(seen[0], QUESTIONS[0], TokenBudget(tokens=20), SHORT)
    np.testing.assert_array_equal(answer.token_ids, again.token_ids)
