"""Conversations of five questions about five objects of a held-out scene: the cost and the accuracy
of each way to keep the picture's tokens in the conversation.

python -m benchmarks.conversations --scenes 200
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.held_out import FIRST_SEED, SHORT
from benchmarks.int8_answers import paired_interval
from export.build import export_bundle
from paddle_recomp.config import TokenBudget
from paddle_recomp.types import Answer
from paddle_recomp.vlm.conversation import Mode
from paddle_recomp.vlm.front_end import SeenImage
from paddle_recomp.vlm.loading import load
from paddle_recomp.vlm.vlm import VLM
from training.scenes import Question, make_scene, questions

TURNS = 5
_OBJECTS = 6
_FULL = TokenBudget(full=True)
BUDGETS = {"dynamic": TokenBudget(), "32 tokens": TokenBudget(tokens=32)}
Ask = Callable[[str], Answer]


@dataclass(frozen=True)
class Talk:
    """Questions about different objects of one picture, in the order in which they are asked."""

    picture: Image.Image
    questions: tuple[Question, ...]


def draw_talks(count: int) -> Iterator[Talk]:
    """Scenes that neither the training nor its evaluation drew, with a question about each of
    five objects."""
    seed = FIRST_SEED
    while count:
        scene = make_scene(seed, objects=_OBJECTS, held_out=True)
        rng = np.random.default_rng(seed)
        seed += 1
        if len(scene.objects) < TURNS:  # The scene had no room for more objects.
            continue
        chosen = []
        for target in rng.permutation(len(scene.objects))[:TURNS]:
            about = [one for one in questions(scene) if one.target == target]
            chosen.append(about[rng.integers(len(about))])
        yield Talk(Image.fromarray(scene.image), tuple(chosen))
        count -= 1


def ways(vlm: VLM) -> dict[tuple[str, str], Callable[[SeenImage], Ask]]:
    """By budget and name: a function that answers the questions about a picture, one after the
    other."""

    def chat(mode: Mode, budget: TokenBudget) -> Callable[[SeenImage], Ask]:
        def begin(seen: SeenImage) -> Ask:
            talk = vlm.chat(seen, mode)
            return lambda question: talk.ask(question, budget, SHORT)

        return begin

    def alone(budget: TokenBudget) -> Callable[[SeenImage], Ask]:
        return lambda seen: lambda question: vlm.ask(seen, question, budget, SHORT)

    found = {
        ("none", "keep"): chat("keep", _FULL),
        ("none", "no history"): alone(_FULL),
    }
    modes: tuple[Mode, ...] = ("recompress", "append", "keep")
    for name, budget in BUDGETS.items():
        found |= {(name, mode): chat(mode, budget) for mode in modes}
        found[name, "no history"] = alone(budget)
    return found


@dataclass(frozen=True)
class Reply:
    """The result of one question."""

    right: bool
    prefilled: int
    first_token: float


Replies = dict[tuple[str, str], list[list[Reply]]]
"""By budget and way: the replies of each turn, one for each conversation."""
COLUMNS: dict[str, Callable[[list[Reply]], float]] = {
    "right %": lambda group: 100 * float(np.mean([one.right for one in group])),
    "positions prefilled, mean": lambda group: float(np.mean([one.prefilled for one in group])),
    "time to first token, ms, median": lambda group: (
        1e3 * float(np.median([one.first_token for one in group]))
    ),
}


def measure(vlm: VLM, talks: int) -> Replies:
    """Every conversation in every way."""
    replies: Replies = defaultdict(lambda: [[] for _ in range(TURNS)])
    everything = ways(vlm)
    for talk in track(list(draw_talks(talks)), "talking"):
        seen = vlm.see(talk.picture)
        for way, begin in everything.items():
            ask = begin(seen)
            for turn, asked in enumerate(talk.questions):
                answer = ask(asked.question)
                right = answer.text == asked.answer
                replies[way][turn].append(Reply(right, answer.prefilled, answer.timing.first_token))
    return replies


def tables(replies: Replies) -> Iterator[Table]:
    """A cell for each of COLUMNS."""
    for title, number in COLUMNS.items():
        table = Table("budget", "way", *map(str, range(1, TURNS + 1)), "all", box=None, title=title)
        for way, turns in replies.items():
            groups = [*turns, [reply for turn in turns for reply in turn]]
            table.add_row(*way, *(f"{number(group):.1f}" for group in groups))
        yield table


def print_differences(console: Console, replies: Replies) -> None:
    """The losses and gains of the modes that keep the KV cache, question by question."""
    for budget in BUDGETS:
        expected = np.array([[one.right for one in turn] for turn in replies[budget, "recompress"]])
        for mode in ("append", "keep"):
            found = np.array([[one.right for one in turn] for turn in replies[budget, mode]])
            change = 100 * (found.astype(float) - expected)
            low, high = paired_interval(change.ravel(), np.indices(change.shape)[1].ravel())
            console.print(
                f"{budget}: {mode} - recompress = {change.mean():.1f} points "
                f"(95% interval {low:.1f} to {high:.1f})"
            )


def main() -> None:
    """Exports the demo, talks, and prints three numbers for each turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--bundle", type=Path, help="An exported demo; else it is exported first.")
    options = parser.parse_args()
    console = Console(highlight=False, width=120)
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or export_bundle("demo", Path(folder) / "bundle").folder
        replies = measure(load(bundle), options.scenes)
    console.print(*tables(replies))
    print_differences(console, replies)
    console.print(f"{options.scenes} conversations")


if __name__ == "__main__":
    main()
