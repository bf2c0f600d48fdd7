"""The time that a cache of features saves, and the arrays that float16 may hold without changing
the choice of tokens.

python -m benchmarks.feature_cache --model BUNDLE
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.comparing import kept_alike
from benchmarks.held_out import Item, draw_items
from paddle_recomp.bundle.contract import OUTPUTS
from paddle_recomp.config import TokenBudget
from paddle_recomp.preprocess import ChatTemplate
from paddle_recomp.vlm.demo import DEMO_CHECKPOINT
from paddle_recomp.vlm.feature_cache import FeatureCache
from paddle_recomp.vlm.front_end import SeenImage, VisualFrontEnd
from paddle_recomp.vlm.loading import chat_template, find, load_front_end

BUDGETS = {"dynamic": TokenBudget(), "32 tokens": TokenBudget(tokens=32)}
ARRAYS = OUTPUTS["vision"]


def rounded(seen: SeenImage, names: Iterable[str]) -> SeenImage:
    """The picture with some of its features as float16 would hold them."""
    halves = {name: seen.features[name].astype(np.float16).astype(np.float32) for name in names}
    return replace(seen, features={**seen.features, **halves})


def overlap_table(front_end: VisualFrontEnd, template: ChatTemplate, items: list[Item]) -> Table:
    """The agreement of the choices, for each array alone in float16 and for all together."""
    title = f"float16, {len(items)} questions"
    table = Table("in float16", "budget", "mean overlap", "same patches", box=None, title=title)
    numbers = {item.number: item.scene for item in items}
    seen = {
        number: front_end.see([Image.fromarray(scene.image)])[0]
        for number, scene in numbers.items()
    }
    for names in [*((name,) for name in ARRAYS), ARRAYS]:
        other = {number: rounded(one, names) for number, one in seen.items()}
        for budget_name, budget in BUDGETS.items():
            overlaps = []
            for item in track(items, ", ".join(names), console=Console(stderr=True)):
                question = item.question.question
                text = front_end.text_of(question, 1, template)
                expected, found = (
                    front_end.compress([one[item.number]], [text], budget)[0]
                    for one in (seen, other)
                )
                overlaps.append(kept_alike(expected.compressed[0], found.compressed[0])[0])
            same = f"{sum(one == 1 for one in overlaps)} of {len(overlaps)}"
            name = "all" if names == ARRAYS else names[0]
            table.add_row(name, budget_name, f"{np.mean(overlaps):.4f}", same)
    return table


def print_times(console: Console, model: str, pictures: list[Image.Image]) -> None:
    """The time to see pictures that are in no cache, on disk, or in memory."""
    table = Table("see", "ms, median", box=None, title=f"{len(pictures)} pictures")
    with tempfile.TemporaryDirectory() as folder:
        found = find(model)
        first, again = (load_front_end(found, cache=FeatureCache(folder=folder)) for _ in range(2))
        # The first run of a kernel includes its set-up.
        load_front_end(found).see(pictures[:1])
        for name, front_end in (("tower", first), ("disk", again), ("memory", again)):
            times = []
            for picture in pictures:
                start = time.perf_counter()
                front_end.see([picture])
                times.append(time.perf_counter() - start)
            table.add_row(name, f"{1e3 * np.median(times):.2f}")
        size = np.mean([path.stat().st_size for path in Path(folder).iterdir()])
    features = first.see(pictures[:1])[0].features
    in_memory = sum(value.nbytes for value in features.values())
    console.print(table)
    console.print(f"a picture takes {in_memory:,} bytes in memory, {size:,.0f} on disk")


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEMO_CHECKPOINT)
    parser.add_argument("--scenes", type=int, default=40)
    options = parser.parse_args()
    console, items = Console(highlight=False), draw_items(options.scenes)
    pictures = {item.number: Image.fromarray(item.scene.image) for item in items}
    print_times(console, options.model, list(pictures.values()))
    found = find(options.model)
    console.print(overlap_table(load_front_end(found), chat_template(found), items))


if __name__ == "__main__":
    main()
