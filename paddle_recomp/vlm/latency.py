"""How long this machine takes until the first token, and how many visual tokens fit a target."""

from __future__ import annotations

import json
import secrets
import threading
import time
import warnings
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import CheckpointNotFoundError, ConfigError, RecompWarning
from paddle_recomp.json_files import one_line, read_json
from paddle_recomp.types import Answer
from paddle_recomp.vlm.answering import Answerer
from paddle_recomp.vlm.front_end import SeenImage

if TYPE_CHECKING:
    from paddle_recomp.vlm.vlm import VLM

REPEATS = 5
SURE = 0.9
"""A target is to be met nearly always, not on average. So the medians of all steps behind the
vision tower are multiplied by a factor: 90 of 100 runs took less than that many times their median.
The vision tower needs none, because its true time is known when the tokens are chosen."""
PIECES = 16
"""Token counts are measured at 1 and at N/16, N/8, … N."""
QUESTION = "what is in the picture?"
_FEW = (1, 8)
"""Positions that a further question of a conversation may have; a whole prompt has more."""
_REMEMBERED = 32
"""Questions that tell how fast the machine is now."""
_LARGEST = 10**9
"""Positions that a profile may speak of."""
_ONE_TOKEN = GenerationConfig(max_new_tokens=1)

Points = tuple[tuple[int, float], ...]
"""Counts, ascending, with the seconds that each takes, ascending too."""


@dataclass(frozen=True)
class Reading:
    """What the language model has to do with for a question, besides its visual tokens."""

    words: int
    """Positions that it reads."""
    past: int
    """Positions in the KV cache, which it does not read again."""
    room: int
    """Visual tokens for which its context has room, with the longest answer behind them."""


@dataclass(frozen=True)
class LatencyProfile:
    """Seconds that a model takes on a machine for each step up to the first token."""

    vision: float
    """Seeing a picture."""
    question: float
    """Everything that is done once for a question, whatever its pictures: CLIP's text tower, the
    words of the prompt."""
    compress: Points
    """Compressing a picture, by the tokens that it becomes."""
    prefill: Points
    """By positions, of words and of pictures, in front of an empty KV cache."""
    past: int
    """Positions of the KV cache behind which `continued` was measured; 0: it was not."""
    continued: Points
    """By positions, behind that KV cache."""

    def __post_init__(self) -> None:
        if not (0 < self.vision < np.inf and 0 < self.question < np.inf):
            raise ValueError("times are not positive")
        if not 0 <= self.past <= _LARGEST:
            raise ValueError("past is no number of positions")
        for points in (self.compress, self.prefill, self.continued):
            counts, seconds = zip(*points, strict=True)
            if not (seconds[0] > 0 and seconds[-1] < np.inf):
                raise ValueError("times are not positive")
            if not 1 <= counts[0] <= counts[-1] <= _LARGEST:
                raise ValueError("counts are no numbers of positions")
            if list(counts) != sorted(set(counts)) or list(seconds) != sorted(seconds):
                raise ValueError("times do not rise with the counts")

    def reading(self, positions: int, past: int = 0) -> float:
        """Seconds for so many positions behind `past` others in the KV cache."""
        alone = _seconds(self.prefill, positions)
        if not past or not self.past:
            return alone
        counts, behind = zip(*self.continued, strict=True)
        more = np.subtract(behind, [_seconds(self.prefill, count) for count in counts])
        more = np.maximum.accumulate(np.maximum(more, 0))
        return alone + _seconds(tuple(zip(counts, more, strict=True)), positions) * past / self.past

    def first_token(self, tokens: int, words: int, images: int, past: int = 0) -> float:
        """Seconds from seen pictures to the first token, where `tokens` are shared by `images`
        and `words` positions are read besides, behind `past` others."""
        compress = images * _seconds(self.compress, tokens / images)
        return self.question + compress + self.reading(words + tokens, past)

    def tokens_within(self, seconds: float, reading: Reading, images: int, most: int) -> int:
        """The most tokens, up to `most`, that `images` can become in that time; at least one each,
        even if that takes longer."""

        def needed(tokens: int) -> float:
            return self.first_token(tokens, reading.words, images, reading.past)

        choices = range(images, max(most, images) + 1)
        return choices[max(bisect_right(choices, seconds, key=needed) - 1, 0)]

    def check_target(
        self, ttft_ms: float, reading: Reading, images: int, new_images: int = 0
    ) -> None:
        """Raises: ConfigError when the target is shorter than the time of one token for each
        picture, with seeing the `new_images` among them."""
        seeing = new_images * self.vision * 1e3
        rest = self.first_token(images, reading.words, images, reading.past) * 1e3
        if ttft_ms < seeing + rest:
            raise ConfigError(
                f"ttft_ms is {ttft_ms:g}; on this machine the first token of the answer takes at "
                f"least {seeing + rest:.1f} ms: {seeing:.1f} for seeing {new_images} "
                f"picture{'s' * (new_images != 1)}, "
                f"{rest:.1f} for {reading.words} positions of text and one token of each picture"
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

    def note(self, answer: Answer, past: int = 0) -> None:
        """Compares the steps that ran for an answer, behind `past` positions of the KV cache, and
        that were measured as they ran here: reading, and compressing where it was one picture,
        because several at once take less than one after the other. Where nothing was compressed,
        nothing was chosen either, and too little was read to tell the machine's pace."""
        timing = answer.timing
        if timing.compress == 0 or not answer.compressed:
            return
        taken, expected = timing.prefill, self.profile.reading(answer.prefilled, past)
        if len(answer.compressed) == 1:
            taken += timing.compress
            expected += _seconds(self.profile.compress, int(answer.compressed[0].count[0]))
        with self._lock:
            self._ratios.append(taken / expected)


class Deadline:
    """The time when a question was asked, and the budget of tokens for its answer. If the budget is
    a time, that is the largest number of tokens that fits the time left, the language model's
    context, and the budget's own limit."""

    def __init__(self, budget: TokenBudget, latency: Callable[[], Latency]) -> None:
        """The clock starts here, after `latency`, which is called only if the budget is a time."""
        self._budget = budget
        self._latency = None if budget.ttft_ms is None else latency()
        self.start = time.perf_counter()

    def check(
        self,
        reading: Callable[[], Reading],
        images: int,
        new_images: int = 0,
        in_no_cache: Callable[[], int] | None = None,
    ) -> None:
        """Compares the budget with so many pictures before one of the new ones is seen. Where there
        is a cache of features, `in_no_cache` says how many of them are not in it; it is asked only
        where that matters, because it takes time.

        Raises: ConfigError as `TokenBudget.check` and `LatencyProfile.check_target`."""
        self._budget.check(images, may_be_time=True)
        if self._latency is None or self._budget.ttft_ms is None or not images:
            return
        check, target = self._latency.profile.check_target, self._budget.ttft_ms
        try:
            check(target, reading(), images, new_images)
        except ConfigError:
            if in_no_cache is None:
                raise
            check(target, reading(), images, in_no_cache())

    def budget(self, reading: Callable[[], Reading], images: Sequence[SeenImage]) -> TokenBudget:
        """The budget for pictures that are seen by now."""
        if self._latency is None or self._budget.ttft_ms is None or not images:
            return replace(self._budget, ttft_ms=None)
        left = self._budget.ttft_ms / 1e3 - (time.perf_counter() - self.start)
        read = reading()
        most = min(sum(image.num_patches for image in images), read.room)
        if self._budget.max_tokens is not None:
            most = min(most, self._budget.max_tokens)
        pace, profile = self._latency.pace(), self._latency.profile
        return TokenBudget(tokens=profile.tokens_within(left / pace, read, len(images), most))

    def note(self, answer: Answer | None, past: int = 0) -> None:
        """If the budget was a time, corrects the profile by the time that this answer took."""
        if self._latency is not None and answer is not None:
            self._latency.note(answer, past)


def _seconds(points: Points, count: float) -> float:
    """Interpolates linearly between the points, and beyond them along the last line."""
    xs, ys = zip(*points, strict=True)
    if count <= xs[-1] or len(xs) == 1:
        return float(np.interp(count, xs, ys))
    slope = (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
    return float(ys[-1] + slope * (count - xs[-1]))


def warm_up(vlm: VLM) -> tuple[SeenImage, list[Answer]]:
    """A seen picture, and the answers to a question about it from one token and from as many as the
    context has room for: the first run of a kernel includes its set-up."""
    seen = vlm.see(_noise(0))
    vlm.ask(seen, QUESTION, TokenBudget(tokens=1), _ONE_TOKEN)
    few = vlm.ask(seen, QUESTION, TokenBudget(tokens=1), _ONE_TOKEN)
    most = min(seen.num_patches, vlm.answerer.model.context - few.prefilled)
    vlm.ask(seen, QUESTION, TokenBudget(tokens=most), _ONE_TOKEN)
    return seen, [few, vlm.ask(seen, QUESTION, TokenBudget(tokens=most), _ONE_TOKEN)]


def measure(
    vlm: VLM, on_step: Callable[[int, int], None] = lambda done, total: None
) -> LatencyProfile:
    """Sees pictures of noise and asks about them; `on_step` hears the steps done and their total.
    The model must not have a cache of features.

    Takes a second for the demo, half a minute for a 1.1B model on two cores."""
    seen, (_, longest) = warm_up(vlm)
    # Another picture each time, so that nothing can remember them.
    vision = [vlm.see(_noise(number)).seconds for number in range(1, REPEATS + 1)]
    counts = token_counts(longest.num_visual_tokens)
    question, compress, prefill = np.empty((3, len(counts), REPEATS))
    positions: list[int] = []
    for step, count in enumerate(counts):
        on_step(step, len(counts) + 1)
        for run in range(REPEATS):
            answer = vlm.ask(seen, QUESTION, TokenBudget(tokens=count), _ONE_TOKEN)
            timing = answer.timing
            compress[step, run], prefill[step, run] = timing.compress, timing.prefill
            question[step, run] = timing.first_token - timing.compress - timing.prefill
        positions.append(answer.prefilled)
    on_step(len(counts), len(counts) + 1)
    few = [count for count in _FEW if count < positions[0]]
    prefill = np.concatenate([_read(vlm.answerer, few, 0), prefill])
    past = min(positions[-1], vlm.answerer.model.context // 2)
    behind = sorted({*_FEW, past // 8, past // 2} - {0})
    continued = _read(vlm.answerer, behind, past)
    on_step(len(counts) + 1, len(counts) + 1)
    whole = question + compress + prefill[len(few) :]
    longer = float(np.quantile(whole / np.median(whole, axis=1, keepdims=True), SURE))
    return LatencyProfile(
        vision=float(np.median(vision)),
        question=longer * float(np.median(question)),
        compress=_points(counts, longer * compress),
        prefill=_points([*few, *positions], longer * prefill),
        past=past,
        continued=_points(behind, longer * continued),
    )


def _read(answerer: Answerer, counts: Sequence[int], past: int) -> np.ndarray:
    """The seconds [counts, repeats] of reading so many positions behind `past` others."""
    words = answerer.model.embed(np.zeros(max(past, *counts), dtype=np.int64))
    state, taken = None, np.empty((len(counts), REPEATS))
    if past:
        filling = answerer.generate([words[:past]], _ONE_TOKEN)
        next(iter(filling))
        state = filling.state
    for row, count in zip(taken, counts, strict=True):
        # The very first includes the set-up of its kernels; the next one takes its place.
        for run in (0, *range(REPEATS)):
            running = answerer.generate([words[:count]], _ONE_TOKEN, state)
            start = time.perf_counter()
            next(iter(running))
            row[run] = time.perf_counter() - start
            if running.state is not None and past:
                state = answerer.model.rewind(running.state, np.array([past]))
    return taken


def known_latency(
    vlm: VLM,
    file: Path | None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Latency:
    """The latency of a model on this machine: read from a file, or measured, which takes a while,
    and saved. The model must not have a cache of features."""
    profile = None if file is None else read_profile(file)
    if profile is not None:
        latency = Latency(profile)
        for answer in warm_up(vlm)[1]:
            latency.note(answer)
        return latency
    profile = measure(vlm, on_step)
    if file is not None:
        keep_profile(profile, file)
    return Latency(profile)


def token_counts(most: int) -> list[int]:
    """Where a model with so many tokens is measured: 1, N/16, N/8, N/4, N/2, N."""
    parts = [most * 2**i // PIECES for i in range(PIECES.bit_length())]
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
        content = read_json(path, ConfigError)
        points = {
            name: tuple((int(count), float(seconds)) for count, seconds in content[name])
            for name in ("compress", "prefill", "continued")
        }
        if set(content) != {field.name for field in fields(LatencyProfile)}:
            raise ValueError("its fields are others")
        return LatencyProfile(
            float(content["vision"]),
            float(content["question"]),
            past=int(content["past"]),
            **points,
        )
    except CheckpointNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        reason = one_line(error, 200)
        message = f"{path} is no latency profile ({reason}); the machine is measured again"
        warnings.warn(message, RecompWarning, stacklevel=3)
        return None


def keep_profile(profile: LatencyProfile, path: Path) -> None:
    """Writes a profile; a disk that cannot be written is a warning."""
    # Written under another name first, so that no reader meets half a file; each writer has its
    # own, because threads and containers that share a disk may have one process number.
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(json.dumps(asdict(profile), indent=2), encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        message = f"{path} cannot be written ({error.strerror}); the next process measures again"
        warnings.warn(message, RecompWarning, stacklevel=3)
