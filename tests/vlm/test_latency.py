"""Targets for the time to the first token: the arithmetic, the file, and who asks the clock."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import ConfigError, RecompWarning
from paddle_recomp.vlm.conversation import Mode
from paddle_recomp.vlm.demo import demo_pictures
from paddle_recomp.vlm.front_end import SeenImage
from paddle_recomp.vlm.latency import (
    Deadline,
    Latency,
    LatencyProfile,
    Points,
    Reading,
    keep_profile,
    measure,
    read_profile,
    token_counts,
)
from paddle_recomp.vlm.vlm import VLM
from tests.threads import at_once
from tests.vlm.counting import CountingBackend, counting

QUESTION = "what digit is red?"
SHORT = GenerationConfig(max_new_tokens=3)
SLOW = LatencyProfile(
    vision=100.0,
    question=50.0,
    compress=((1, 1.0), (256, 256.0)),
    prefill=((10, 100.0), (20, 200.0)),
    past=100,
    continued=((10, 200.0), (20, 300.0)),
)
"""A second for each token of a picture in the compressor, ten for each position and one for each in
the KV cache: what a test takes itself does not matter."""


@st.composite
def points(draw: st.DrawFn) -> Points:
    counts = sorted(draw(st.sets(st.integers(1, 900), min_size=1, max_size=7)))
    steps = draw(st.lists(st.floats(1e-4, 5), min_size=len(counts), max_size=len(counts)))
    return tuple(zip(counts, np.cumsum(steps).tolist(), strict=True))


@given(
    compress=points(),
    prefill=points(),
    continued=points(),
    seconds=st.floats(0, 30),
    words=st.integers(1, 300),
    past=st.integers(0, 900),
    images=st.integers(1, 4),
    most=st.integers(-20, 1024),
)
def test_the_most_tokens_that_fit(
    compress: Points,
    prefill: Points,
    continued: Points,
    seconds: float,
    words: int,
    past: int,
    images: int,
    most: int,
) -> None:
    profile = LatencyProfile(1.0, 0.1, compress, prefill, 300, continued)
    tokens = profile.tokens_within(seconds, Reading(words, past, 0), images, most)
    assert images <= tokens <= max(most, images)
    times = [profile.first_token(n, words, images, past) for n in (tokens, tokens + 1)]
    assert times[0] <= times[1], "more tokens never take less time"
    if tokens > images:
        assert times[0] <= seconds
    if tokens < most:
        assert times[1] > seconds


def test_lines_between_what_was_measured() -> None:
    assert SLOW.first_token(5, 10, 1) == pytest.approx(50 + 5 + 150)
    assert SLOW.first_token(6, 14, 2) == pytest.approx(50 + 2 * 3 + 200)
    assert SLOW.first_token(100, 10, 1) == pytest.approx(50 + 100 + 1100), "the last line goes on"
    assert SLOW.reading(15, 100) == 250
    assert SLOW.reading(15, 30) == 180
    assert SLOW.reading(15, 300) == 450, "so does the line behind the past"
    flat = LatencyProfile(1.0, 0.5, ((1, 2.0),), ((7, 3.0),), 0, ((7, 9.0),))
    assert flat.first_token(200, 10, 1) == 5.5
    assert flat.first_token(200, 10, 2) == 7.5, "each picture has a compressor's time"
    assert flat.reading(7, 100) == 3, "nothing is known about a past"


class SlowVLM(VLM):
    """One that believes itself on a slow machine."""

    slow: Latency

    def latency(self, on_step: Callable[[int, int], None] = lambda done, total: None) -> Latency:
        return self.slow


@pytest.fixture
def slow(vlm: VLM) -> tuple[VLM, CountingBackend]:
    counted, backend = counting(vlm)
    ours = SlowVLM(counted.front_end, vlm.answerer)
    ours.slow = Latency(SLOW)
    return ours, backend


@pytest.fixture(scope="module")
def seen(vlm: VLM) -> list[SeenImage]:
    return vlm.front_end.see(list(demo_pictures())[:2])


def words_of(vlm: VLM, images: list[SeenImage]) -> int:
    answer = vlm.ask(images, QUESTION, None, SHORT)
    return answer.prefilled - answer.num_visual_tokens


def target(tokens: int, words: int, images: int = 1) -> TokenBudget:
    """Time for so many tokens, and for a half of one more."""
    return TokenBudget(ttft_ms=1e3 * (SLOW.first_token(tokens, words, images) + 5.5))


@pytest.mark.parametrize("tokens", [1, 40, 255, 256])
def test_a_time_becomes_tokens(
    slow: tuple[VLM, CountingBackend], seen: list[SeenImage], tokens: int
) -> None:
    vlm, _ = slow
    words = words_of(vlm, seen[:1])
    found = vlm.ask(seen[0], QUESTION, target(tokens, words), SHORT)
    exact = vlm.ask(seen[0], QUESTION, TokenBudget(tokens=tokens), SHORT)
    assert found.compressed[0].index.tolist() == exact.compressed[0].index.tolist()
    assert found.token_ids == exact.token_ids


def test_several_pictures_share_the_time(
    slow: tuple[VLM, CountingBackend], seen: list[SeenImage]
) -> None:
    vlm, _ = slow
    words = words_of(vlm, seen)
    answer = vlm.ask(seen, QUESTION, target(45, words, images=2), SHORT)
    assert [int(one.count[0]) for one in answer.compressed] == [23, 22]
    assert vlm.ask([], QUESTION, TokenBudget(ttft_ms=1), SHORT).num_visual_tokens == 0


def test_what_cannot_be_met_is_said_before_anything_runs(
    slow: tuple[VLM, CountingBackend], seen: list[SeenImage]
) -> None:
    vlm, backend = slow
    picture, words = next(iter(demo_pictures())), words_of(vlm, seen[:1])
    backend.runs.clear()
    least = SLOW.first_token(1, words, 1)
    with pytest.raises(ConfigError, match=rf"at least {1e3 * least:.1f} ms: 0.0 for seeing 0"):
        vlm.ask(seen[0], QUESTION, TokenBudget(ttft_ms=1e3 * least - 1))
    with pytest.raises(ConfigError, match=rf"{1e3 * (100 + least):.1f} ms: 100000.0 for seeing 1"):
        vlm.ask(picture, QUESTION, TokenBudget(ttft_ms=1e3 * (100 + least) - 1))
    assert not backend.runs
    with pytest.raises(ConfigError, match="one question at a time"):
        vlm.ask_batch([seen[0]], [QUESTION], TokenBudget(ttft_ms=1e6))


@pytest.mark.parametrize("mode", ["recompress", "append"])
def test_a_conversation_counts_what_is_read(
    mode: Mode, slow: tuple[VLM, CountingBackend], seen: list[SeenImage]
) -> None:
    """A further question has the time of what is not in the KV cache."""
    vlm, _ = slow
    vlm.slow = Latency(replace(SLOW, past=0))  # type: ignore[attr-defined]
    other, chat = vlm.chat(seen[0], mode), vlm.chat(seen[0], mode)
    for one in (other, chat):
        one.ask(QUESTION, TokenBudget(tokens=20), SHORT)
    second = other.ask("where is the circle?", TokenBudget(full=True), SHORT)
    kept = {
        int(p) for p in vlm.ask(seen[0], QUESTION, TokenBudget(tokens=20)).compressed[0].index[0]
    }
    new = 256 if mode == "recompress" else 256 - len(kept - {-1})
    words = second.prefilled - new
    if mode == "append":
        assert words < 30, "the first turn is in the cache"
    answer = chat.ask("where is the circle?", target(50, words), SHORT)
    assert answer.num_visual_tokens == 50


def test_the_clock_runs_while_the_picture_is_seen(
    slow: tuple[VLM, CountingBackend], seen: list[SeenImage]
) -> None:
    """What the vision tower really took is what is left out, not what the profile says."""
    vlm, _ = slow
    words = words_of(vlm, seen[:1])
    budget = target(40, words)
    assert budget.ttft_ms is not None
    budget = TokenBudget(ttft_ms=budget.ttft_ms + 110_000)
    answer = vlm.ask(next(iter(demo_pictures())), QUESTION, budget, SHORT)
    assert answer.num_visual_tokens == 50, "110 seconds are ten tokens more"


def test_only_what_is_left_of_the_time_counts() -> None:
    budget = target(40, words=10)
    for passed, tokens in ((0, 40), (33, 37), (10_000, 1)):
        deadline = Deadline(budget, lambda: Latency(SLOW))
        deadline.start -= passed
        seen = SimpleNamespace(num_patches=256)
        assert deadline.budget(lambda: Reading(10, 0, 999), [seen]) == TokenBudget(tokens=tokens)  # type: ignore[list-item]


def test_a_slower_machine_gets_fewer_tokens(
    slow: tuple[VLM, CountingBackend], seen: list[SeenImage]
) -> None:
    """What answers took corrects the profile: 4 times as long, a quarter of the time is enough."""
    vlm, _ = slow
    words = words_of(vlm, seen[:1])
    budget = target(200, words)
    answer = vlm.ask(seen[0], QUESTION, budget, SHORT)
    assert answer.num_visual_tokens == 200
    took = replace(
        answer.timing, first_token=1e9, compress=4 * 200.0, prefill=4 * SLOW.reading(200 + words)
    )
    for _ in range(40):
        vlm.latency().note(replace(answer, timing=took))
    assert vlm.latency().pace() == pytest.approx(4)
    assert budget.ttft_ms is not None
    fit = SLOW.tokens_within(budget.ttft_ms / 4e3, Reading(words, 0, 0), 1, 256)
    again = vlm.chat(seen[0]).ask(QUESTION, budget, SHORT)
    assert again.num_visual_tokens == fit < 60
    assert vlm.latency().pace() == pytest.approx(4), "nine of ten"
    for _ in range(32):
        vlm.ask(seen[0], QUESTION, TokenBudget(ttft_ms=1e7), GenerationConfig(max_new_tokens=1))
    assert vlm.latency().pace() < 0.1, "fast again"


def test_measured_once_and_kept(vlm: VLM, tmp_path: Path) -> None:
    file = tmp_path / "new" / "profile.json"
    first, again = (VLM(vlm.front_end, vlm.answerer, file) for _ in range(2))
    steps: list[int] = []
    latency, profile = first.latency(lambda done, _: steps.append(done)), first.latency().profile
    assert steps == list(range(8))
    assert first.latency() is latency
    assert [count for count, _ in profile.compress] == [1, 16, 32, 64, 128, 256]
    text, written = file.read_text(), file.stat().st_mtime_ns
    assert again.latency().profile == profile
    assert (file.read_text(), file.stat().st_mtime_ns) == (text, written)
    assert [path.name for path in file.parent.iterdir()] == ["profile.json"]


def test_a_kept_profile_is_compared_with_today(vlm: VLM, tmp_path: Path) -> None:
    keep_profile(SLOW, tmp_path / "profile.json")
    today = VLM(vlm.front_end, vlm.answerer, tmp_path / "profile.json").latency()
    assert today.profile == SLOW
    assert today.pace() < 0.9


def test_steps_are_told(vlm: VLM) -> None:
    heard: list[tuple[int, int]] = []
    measure(vlm, lambda done, total: heard.append((done, total)))
    assert heard == [(i, 7) for i in range(8)]


@pytest.mark.parametrize(
    ("patches", "counts"),
    [
        (1, [1]),
        (9, [1, 2, 4, 9]),
        (256, [1, 16, 32, 64, 128, 256]),
        (576, [1, 36, 72, 144, 288, 576]),
    ],
)
def test_where_it_is_measured(patches: int, counts: list[int]) -> None:
    assert token_counts(patches) == counts


def _without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.pop(name)


@pytest.mark.parametrize(
    "damage",
    [
        _without("vision"),
        _without("prefill"),
        lambda content: content.update(more=1),
        lambda content: content.update(vision=-1.0),
        lambda content: content.update(vision="fast"),
        lambda content: content.update(question=0),
        lambda content: content.update(past=-3),
        lambda content: content.update(continued=[]),
        lambda content: content.update(vision=10**400),
        lambda content: content.update(past=10**400),
        lambda content: content.update(compress=[[1, 10**400]]),
        lambda content: content.update(compress=[[1, 1.0], [10**400, 2.0]]),
        lambda content: content.update(compress=[[0, 1.0]]),
        lambda content: content.update(prefill=[]),
        lambda content: content.update(prefill=[[1, 2.0, 3.0]]),
        lambda content: content.update(compress=[[2, 1.0], [1, 2.0]]),
        lambda content: content.update(compress=[[1, 2.0], [2, 1.0]]),
        lambda content: content.update(compress=[[1, 0.0]]),
    ],
)
def test_a_damaged_profile_is_measured_again(
    damage: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    file = tmp_path / "profile.json"
    keep_profile(SLOW, file)
    assert read_profile(file) == SLOW
    content = json.loads(json.dumps(asdict(SLOW)))
    damage(content)
    file.write_text(json.dumps(content))
    with pytest.warns(RecompWarning, match=r"profile.json is no latency profile"):
        assert read_profile(file) is None


def test_files_that_are_none(tmp_path: Path) -> None:
    assert read_profile(tmp_path / "none.json") is None
    (tmp_path / "half.json").write_text('{"vision": 1')
    (tmp_path / "list.json").write_text("[]")
    for name in ("half.json", "list.json", "."):
        with pytest.warns(RecompWarning, match="no latency profile"):
            assert read_profile(tmp_path / name) is None
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.warns(RecompWarning, match="not a regular file"):
        assert read_profile(tmp_path / "pipe.json") is None
    with pytest.warns(RecompWarning, match="cannot be written"):
        keep_profile(SLOW, tmp_path / "half.json" / "below.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.warns(RecompWarning, match="cannot be written"):
        keep_profile(SLOW, tmp_path / "folder.json")
    assert not list(tmp_path.glob(".*")), "no part stays"


def test_threads_keep_one_profile_at_once(tmp_path: Path) -> None:
    """They have the same process number."""
    file = tmp_path / "profile.json"

    def keep(_: int) -> None:
        for _ in range(50):
            keep_profile(SLOW, file)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        at_once(6, keep)
    assert read_profile(file) == SLOW
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
