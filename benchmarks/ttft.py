"""How often the first token comes within a target time, and from how many visual tokens.

    python -m benchmarks.ttft
    python -m benchmarks.ttft --model BUNDLE --asks 20

The targets lie between the times of one token and of all patches, by the latency profile. Every
other question is about a picture that was seen before, which leaves time for more tokens."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.held_out import Item, draw_items
from paddle_recomp.commands.bench.table import machine_line
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.types import Answer
from paddle_recomp.vlm.demo import DEMO
from paddle_recomp.vlm.latency import LatencyProfile
from paddle_recomp.vlm.loading import load
from paddle_recomp.vlm.machine import this_machine
from paddle_recomp.vlm.vlm import VLM

SHARES = (0.1, 0.4, 0.8)
"""Where a target lies between the least and the most that a question about a new picture takes."""
ONE_TOKEN = GenerationConfig(max_new_tokens=1)


@dataclass(frozen=True)
class Ask:
    """One answer to a question with a target."""

    answer: Answer
    seen_before: bool


def target(profile: LatencyProfile, words: int, num_patches: int, share: float) -> float:
    """Seconds."""
    least, most = (profile.vision + profile.first_token(n, words, 1) for n in (1, num_patches))
    return least + share * (most - least)


def ask_all(vlm: VLM, items: list[Item], seconds: float, name: str) -> list[Ask]:
    """Asks each question about its picture, which is in turn a new one and one that was seen."""
    asks, budget = [], TokenBudget(ttft_ms=1e3 * seconds)
    for number, item in enumerate(track(items, name, console=Console(stderr=True))):
        picture = Image.fromarray(item.scene.image)
        before = number % 2 == 1
        image = vlm.see(picture) if before else picture
        asks.append(Ask(vlm.ask(image, item.question.question, budget, ONE_TOKEN), before))
    return asks


def add_row(table: Table, seconds: float, asks: list[Ask]) -> None:
    """The results for one target."""
    times = [one.answer.timing.first_token for one in asks]
    tokens = [
        mean(one.answer.num_visual_tokens for one in asks if one.seen_before == before)
        for before in (False, True)
    ]
    table.add_row(
        f"{1e3 * seconds:.1f}",
        *(f"{count:.0f}" for count in tokens),
        f"{1e3 * median(times):.1f}",
        f"{1e3 * float(np.quantile(times, 0.95)):.1f}",
        f"{sum(one <= seconds for one in times)} of {len(times)}",
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEMO)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--asks", type=int, default=50)
    options = parser.parse_args()
    console, items = Console(highlight=False), draw_items(options.asks)[: options.asks]
    vlm = load(options.model, options.clip)
    # Not the saved profile, because profile and questions must belong to one sitting.
    vlm.latency_file = None
    start = time.perf_counter()
    profile = vlm.latency().profile
    console.print(machine_line(this_machine()), soft_wrap=True)
    console.print(f"measured in {time.perf_counter() - start:.1f} s: {profile}", soft_wrap=True)
    answer = vlm.ask(Image.fromarray(items[0].scene.image), items[0].question.question)
    words = answer.prefilled - answer.num_visual_tokens
    table = Table("target, ms", box=None)
    for title in ("tokens, new picture", "seen picture", "median, ms", "95%", "within the target"):
        table.add_column(title, justify="right")
    for share in SHARES:
        seconds = target(profile, words, answer.num_patches, share)
        add_row(table, seconds, ask_all(vlm, items, seconds, f"{1e3 * seconds:.1f} ms"))
    console.print(table)


if __name__ == "__main__":
    main()
