"""How long this machine takes until the first token, and how many visual tokens fit a target."""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import ConfigError, RecompWarning
from paddle_recomp.types import Answer
from paddle_recomp.vlm.front_end import SeenImage

REPEATS = 5
SURE = 0.9
"""A target is to be met nearly always, not on average. So the medians of all steps behind the
vision tower are multiplied by a factor: 90 of 100 runs took less than that many times their median.
The vision tower needs none, because its true time is known when the tokens are chosen."""
PIECES = 16
"""Token counts are measured at 1 and at N/16, N/8, … N."""
QUESTION = "what is in the picture?"
_REMEMBERED = 32
"""Questions that tell how fast the machine is now."""
_ONE_TOKEN = GenerationConfig(max_new_tokens=1)

See = Callable[[Image.Image], SeenImage]
"""`VLM.see`, which is measured."""
Ask = Callable[[SeenImage, str, TokenBudget, GenerationConfig], Answer]
"""`VLM.ask`, which is measured."""

Points = tuple[tuple[int, float], ...]
"""Counts, ascending, with the seconds that each takes, ascending too."""


@dataclass(frozen=True)
class LatencyProfile:
    """Seconds that a model takes on a machine for each step up to the first token."""

    vision: float
    """Seeing a picture."""
    compress: Points
    """Everything between seeing and the language model, by the tokens that a picture becomes."""
    prefill: Points
    """By positions, of words and of pictures."""

    def __post_init__(self) -> None:
        for points in (self.compress, self.prefill):
            counts, seconds = zip(*points, strict=True)
            if not (0 < self.vision < np.inf and seconds[0] > 0 and seconds[-1] < np.inf):
                raise ValueError("times are not positive")
            if list(counts) != sorted(set(counts)) or list(seconds) != sorted(seconds):
                raise ValueError("times do not rise with the counts")

    def first_token(self, tokens: int, words: int, images: int) -> float:
        """Seconds from seen pictures to the first token, where `tokens` are shared by `images`
        and `words` positions are read besides."""
        compress = images * _seconds(self.compress, tokens / images)
        return compress + _seconds(self.prefill, words + tokens)

    def tokens_within(self, seconds: float, words: int, images: int, num_patches: int) -> int:
        """The most tokens that `images` of `num_patches` can become in that time; at least one
        each, even if that takes longer."""
        choices = range(images, images * num_patches + 1)
        fit = bisect_right(choices, seconds, key=lambda n: self.first_token(n, words, images))
        return choices[max(fit - 1, 0)]

    def check_target(self, ttft_ms: float, words: int, images: int, new_images: int = 0) -> None:
        """Raises: ConfigError when the target is shorter than the time of one token for each
        picture, with seeing the `new_images` among them."""
        seeing = new_images * self.vision * 1e3
        reading = self.first_token(images, words, images) * 1e3
        if ttft_ms < seeing + reading:
            raise ConfigError(
                f"ttft_ms is {ttft_ms:g}; on this machine the first token of the answer takes at "
                f"least {seeing + reading:.1f} ms: {seeing:.1f} for seeing {new_images} pictures, "
                f"{reading:.1f} for {words} positions of text and one token of each picture"
            )


class Latency:
    """A profile, corrected by the times of the last questions, because a machine is sometimes
    slower or faster than when it was measured. Threads may share it."""

    def __init__(self, profile: LatencyProfile) -> None:
        self.profile = profile
        self._ratios = deque([1.0], maxlen=_REMEMBERED)
        self._lock = threading.Lock()

    def pace(self) -> float:
        """The factor by which steps now take longer than in the profile; SURE of the last questions
        took less."""
        with self._lock:
            return float(np.quantile(self._ratios, SURE))

    def note(self, answer: Answer) -> None:
        """Compares how long the first token of an answer to pictures took."""
        tokens, images = answer.num_visual_tokens, len(answer.compressed)
        expected = self.profile.first_token(tokens, answer.prefilled - tokens, images)
        taken = answer.timing.first_token - answer.timing.vision
        with self._lock:
            self._ratios.append(taken / expected)


class Deadline:
    """The time when a question was asked, and the budget of tokens for its answer. If the budget is
    a time, that is the largest number of tokens that fits the time left."""

    def __init__(self, budget: TokenBudget, latency: Callable[[], Latency]) -> None:
        """The clock starts here, after `latency`, which is called only if the budget is a time."""
        self._budget = budget
        self._latency = None if budget.ttft_ms is None else latency()
        self.start = time.perf_counter()

    def check(self, words: Callable[[], int], images: int, new_images: int = 0) -> None:
        """Raises: ConfigError as `LatencyProfile.check_target`."""
        if self._latency is not None and self._budget.ttft_ms is not None and images:
            self._latency.profile.check_target(self._budget.ttft_ms, words(), images, new_images)

    def budget(self, words: Callable[[], int], images: Sequence[SeenImage]) -> TokenBudget:
        """The budget for pictures that are seen by now, with so many positions of words."""
        if self._latency is None or self._budget.ttft_ms is None or not images:
            return self._budget
        left = self._budget.ttft_ms / 1e3 - (time.perf_counter() - self.start)
        tokens = self._latency.profile.tokens_within(
            left / self._latency.pace(), words(), len(images), images[0].num_patches
        )
        return TokenBudget(tokens=tokens)

    def note(self, answer: Answer | None) -> None:
        """If the budget was a time, corrects the profile by the time that this answer took."""
        if self._latency is not None and answer is not None and answer.compressed:
            self._latency.note(answer)


def _seconds(points: Points, count: float) -> float:
    """Interpolates linearly between the points, and beyond them along the last line."""
    xs, ys = zip(*points, strict=True)
    if count <= xs[-1] or len(xs) == 1:
        return float(np.interp(count, xs, ys))
    slope = (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
    return float(ys[-1] + slope * (count - xs[-1]))


def _ask_extremes(ask: Ask, seen: SeenImage) -> list[Answer]:
    """Answers from all tokens of a picture, and from one."""
    budgets = (TokenBudget(full=True), TokenBudget(tokens=1))
    return [ask(seen, QUESTION, budget, _ONE_TOKEN) for budget in budgets]


def warm_up(see: See, ask: Ask) -> SeenImage:
    """A seen picture, after a first question about it: the first run of a kernel includes its
    set-up."""
    seen = see(_noise(0))
    _ask_extremes(ask, seen)
    return seen


def measure(
    see: See, ask: Ask, on_step: Callable[[int, int], None] = lambda done, total: None
) -> LatencyProfile:
    """Sees pictures of noise and asks about them; `on_step` hears the steps done and their total.

    Takes a second for the demo, half a minute for a 1.1B model on two cores."""
    seen = warm_up(see, ask)
    # Another picture each time, in case the model remembers them.
    vision = [see(_noise(number)).seconds for number in range(1, REPEATS + 1)]
    counts = token_counts(seen.num_patches)
    positions: list[int] = []
    before, prefill = np.empty((2, len(counts), REPEATS))
    for step, count in enumerate(counts):
        on_step(step, len(counts))
        for run in range(REPEATS):
            answer = ask(seen, QUESTION, TokenBudget(tokens=count), _ONE_TOKEN)
            prefill[step, run] = answer.timing.prefill
            before[step, run] = answer.timing.first_token - answer.timing.prefill
        positions.append(answer.prefilled)
    on_step(len(counts), len(counts))
    whole = before + prefill
    longer = float(np.quantile(whole / np.median(whole, axis=1, keepdims=True), SURE))
    return LatencyProfile(
        float(np.median(vision)),
        _points(counts, longer * before),
        _points(positions, longer * prefill),
    )


def known_latency(
    see: See,
    ask: Ask,
    file: Path | None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Latency:
    """The latency of a model on this machine: read from a file, or measured, which takes a while,
    and saved."""
    profile = None if file is None else read_profile(file)
    if profile is not None:
        latency = Latency(profile)
        for answer in _ask_extremes(ask, warm_up(see, ask)):
            latency.note(answer)
        return latency
    profile = measure(see, ask, on_step)
    if file is not None:
        keep_profile(profile, file)
    return Latency(profile)


def token_counts(num_patches: int) -> list[int]:
    """Where a model is measured: 1, N/16, N/8, N/4, N/2, N."""
    parts = [num_patches * 2**i // PIECES for i in range(PIECES.bit_length())]
    return sorted({1, *(part for part in parts if part)})


def _points(counts: Sequence[int], runs: np.ndarray) -> Points:
    """The medians of runs [points, repeats], raised where more tokens took less time."""
    return tuple(zip(counts, np.maximum.accumulate(np.median(runs, axis=1)).tolist(), strict=True))


def _noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def read_profile(path: Path) -> LatencyProfile | None:
    """A saved profile; None where there is none, or, with a warning, where the file is no
    profile."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        points = {
            name: tuple((int(count), float(seconds)) for count, seconds in content[name])
            for name in ("compress", "prefill")
        }
        if set(content) != {field.name for field in fields(LatencyProfile)}:
            raise ValueError("its fields are others")
        return LatencyProfile(float(content["vision"]), **points)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{path} is no latency profile ({error}); the machine is measured again"
        warnings.warn(message, RecompWarning, stacklevel=3)
        return None


def keep_profile(profile: LatencyProfile, path: Path) -> None:
    """Writes a profile; a disk that cannot be written is a warning."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written under another name first, so that no reader meets half a file.
        part.write_text(json.dumps(asdict(profile), indent=2), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        message = f"{path} cannot be written ({error.strerror}); the next process measures again"
        warnings.warn(message, RecompWarning, stacklevel=3)
