"""Questions about a picture at several token budgets: the time of each step, and the memory."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from statistics import median

from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import ConfigError
from paddle_recomp.preprocess import check_question
from paddle_recomp.types import Answer, Timing
from paddle_recomp.vlm.conversation import DEFAULT_MODE
from paddle_recomp.vlm.front_end import ImageLike
from paddle_recomp.vlm.machine import Machine, peak_memory, reset_peak, this_machine
from paddle_recomp.vlm.vlm import VLM

FULL, DYNAMIC = "full", "dynamic"
FIRST, SECOND, NEXT = QUESTIONS = (1, 2, 3)
"""The first question about a picture, which includes the vision tower; another one, which is asked
without the first; and that same one as the next of a conversation, which keeps its KV cache."""
TOKENS = 64
"""The exact budget, unless a picture has fewer patches."""


@dataclass(frozen=True)
class BenchConfig:
    """The questions and budgets, and how often they are repeated.

    Raises: ConfigError for what measures nothing; QuestionError."""

    tokens: tuple[int, ...] = ()
    """The exact budgets. If there is none: 64, or all patches of a picture that has fewer."""
    questions: tuple[str, str] = (
        "what is in the picture?",
        "where does the largest thing in it stand?",
    )
    """The first and the second question about the picture."""
    new_tokens: int = 32
    """The length of every answer."""
    repeats: int = 3

    def __post_init__(self) -> None:
        for question in self.questions:
            check_question(question, num_images=1)
        if self.new_tokens < 2:
            raise ConfigError(f"new_tokens is {self.new_tokens}; expected at least 2")
        if self.repeats < 1:
            raise ConfigError(f"repeats is {self.repeats}; expected at least 1")

    def budgets(self, num_patches: int) -> dict[str, TokenBudget]:
        """No compression, the filter's own number, and the exact ones, each by its name.

        Raises: ConfigError for fewer tokens than one, or more than there are patches."""
        exact = [TokenBudget(tokens=n) for n in self.tokens or (min(TOKENS, num_patches),)]
        for budget in exact:
            budget.bounds(num_patches)
        named = {str(budget.tokens): budget for budget in exact}
        return {FULL: TokenBudget(full=True), DYNAMIC: TokenBudget(), **named}


@dataclass(frozen=True)
class Row:
    """One question at one budget, answered several times."""

    budget: str
    question: int
    """One of QUESTIONS."""
    visual_tokens: int
    prefilled: int
    """Positions, of words and of the picture, in front of the first token."""
    new_tokens: int
    """The new tokens of each answer, including the first one."""
    samples: tuple[Timing, ...]
    peak_memory: int
    """Bytes; see `machine.peak_memory`, `Report.peaks_apart`."""

    @property
    def timing(self) -> Timing:
        """The median of each step."""
        names = [field.name for field in fields(Timing)]
        return Timing(
            **{name: median(getattr(one, name) for one in self.samples) for name in names}
        )

    @property
    def tokens_per_second(self) -> float:
        """The speed of the tokens after the first one."""
        return (self.new_tokens - 1) / self.timing.decode


@dataclass(frozen=True)
class Report:
    """All measurements of one model."""

    rows: tuple[Row, ...]
    """By budget, the uncompressed one first, with the QUESTIONS of each."""
    num_patches: int
    peak_memory: int
    """The largest peak of all in bytes, including loading."""
    peaks_apart: bool
    """Whether each row has a peak of its own, or the peak since the process began."""
    machine: Machine

    def row(self, budget: str, question: int) -> Row:
        """One of the rows."""
        return next(row for row in self.rows if (row.budget, row.question) == (budget, question))

    def prefill_speed(self, budget: str) -> float:
        """The speed of the prefill of a whole prompt relative to that without compression."""
        ratios = []
        for question in (FIRST, SECOND):
            rows = self.row(FULL, question), self.row(budget, question)
            pairs = zip(*(row.samples for row in rows), strict=True)
            ratios += [full.prefill / less.prefill for full, less in pairs]
        return median(ratios)

    def second_share(self, budget: str) -> float:
        """The time to the first token of the second question, as a share of that of the first
        question without compression."""
        return self._share((budget, SECOND), (FULL, FIRST))

    def next_share(self, budget: str) -> float:
        """The time to the first token of the next question of a conversation, as a share of that
        without compression, where the KV cache holds every patch already."""
        return self._share((budget, NEXT), (FULL, NEXT))

    def _share(self, asked: tuple[str, int], of: tuple[str, int]) -> float:
        pairs = zip(self.row(*asked).samples, self.row(*of).samples, strict=True)
        return median(one.first_token / other.first_token for one, other in pairs)


def bench(
    vlm: VLM,
    picture: ImageLike,
    config: BenchConfig | None = None,
    on_answer: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Asks the QUESTIONS about a picture, which is seen again for each first question, at each
    budget in turn, and repeats all that `repeats` times. All answers have the same length; no token
    ends them.

    A round before that warms everything up and measures the memory. It begins with the fewest
    tokens, because a runtime keeps the memory that it once took, and it resets the process's record
    of its peak. `on_answer` is given the number of answers so far and in all.

    Raises: ConfigError (budget), and as `VLM.ask`."""
    config = config or BenchConfig()
    num_patches = vlm.see(picture).num_patches
    budgets = config.budgets(num_patches)
    by_size = sorted(budgets, key=lambda name: budgets[name].bounds(num_patches))
    model, generation = _endless(vlm), GenerationConfig(max_new_tokens=config.new_tokens)
    next(_ask_in_turn(model, picture, config.questions, budgets[by_size[0]], generation))

    def ask_all(names: Iterable[str]) -> Iterator[tuple[tuple[str, int], Answer]]:
        for name in names:
            answers = _ask_in_turn(model, picture, config.questions, budgets[name], generation)
            for question, answer in zip(QUESTIONS, answers, strict=True):
                yield (name, question), answer
                on_answer(next(count), len(QUESTIONS) * len(budgets) * (config.repeats + 1))

    count, rows = itertools.count(1), {}
    largest, apart = peak_memory(), reset_peak()
    for key, answer in ask_all(by_size):
        about = answer.num_visual_tokens, answer.prefilled, len(answer.token_ids)
        rows[key] = Row(*key, *about, samples=(), peak_memory=peak_memory())
        largest = max(largest, peak_memory())
        reset_peak()
    for _ in range(config.repeats):
        for key, answer in ask_all(budgets):
            rows[key] = replace(rows[key], samples=(*rows[key].samples, answer.timing))
    return Report(
        rows=tuple(rows[name, question] for name in budgets for question in QUESTIONS),
        num_patches=num_patches,
        peak_memory=max(largest, peak_memory()),
        peaks_apart=apart,
        machine=this_machine(),
    )


def _ask_in_turn(
    vlm: VLM,
    picture: ImageLike,
    questions: tuple[str, str],
    budget: TokenBudget,
    generation: GenerationConfig,
) -> Iterator[Answer]:
    """The answers to QUESTIONS; the vision tower is part of the first one's time."""
    seen = vlm.see(picture)
    # A conversation that has every patch has nothing to recover: it need not compress again.
    chat = vlm.chat(seen, "keep" if budget.full else DEFAULT_MODE)
    first = chat.ask(questions[0], budget, generation)
    paid = first.timing.first_token + seen.seconds
    yield replace(first, timing=replace(first.timing, vision=seen.seconds, first_token=paid))
    yield vlm.ask(seen, questions[1], budget, generation)
    yield chat.ask(questions[1], budget, generation)


def _endless(vlm: VLM) -> VLM:
    """The same model, with answers that no token ends, because random weights could end them
    anywhere."""
    tokenizer = copy.copy(vlm.answerer.tokenizer)
    tokenizer.eos_token_ids = ()
    return VLM(vlm.front_end, replace(vlm.answerer, tokenizer=tokenizer))
