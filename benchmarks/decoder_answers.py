"""The demo model's answers with each precision of the decoder, everything else being equal.

python -m benchmarks.decoder_answers --scenes 270
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.held_out import SHORT, Item, draw_items
from export.decoder.write import write_decoder
from paddle_recomp.bundle import DECODER_PRECISIONS
from paddle_recomp.config import TokenBudget
from paddle_recomp.llm.onnx_decoder import OnnxDecoder
from paddle_recomp.vlm.demo import DEMO_CHECKPOINT
from paddle_recomp.vlm.loading import find_checkpoint, load
from paddle_recomp.vlm.vlm import VLM

BUDGETS = {
    "full": TokenBudget(full=True),
    "dynamic": TokenBudget(),
    "32 tokens": TokenBudget(tokens=32),
}
Counts = Counter[tuple[str, str]]
"""Counts by budget and precision."""


def count(items: Sequence[Item], models: dict[str, VLM]) -> tuple[Counts, Counts]:
    """How many answers are right, and how many equal those of fp32."""
    right: Counts = Counter()
    same: Counts = Counter()
    number, seen = -1, None
    for item in track(items, "answering"):
        if seen is None or item.number != number:
            number = item.number
            seen = models["fp32"].see(Image.fromarray(item.scene.image))
        for name, budget in BUDGETS.items():
            answers = {
                precision: model.ask(seen, item.question.question, budget, SHORT).text
                for precision, model in models.items()
            }
            for precision, answer in answers.items():
                right[name, precision] += answer == item.question.answer
                same[name, precision] += answer == answers["fp32"]
    return right, same


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=270)
    options = parser.parse_args()
    eager, checkpoint = load(DEMO_CHECKPOINT), find_checkpoint(DEMO_CHECKPOINT)
    models = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in DECODER_PRECISIONS:
            target = Path(folder) / precision
            target.mkdir()
            info = write_decoder(checkpoint, target, precision, {})
            decoder = OnnxDecoder(target, info, threads=1)
            models[precision] = VLM(eager.front_end, replace(eager.answerer, model=decoder))
        items = draw_items(options.scenes)
        right, same = count(items, models)
    table = Table("budget", "decoder", "right %", "as with fp32 %", box=None)
    for name, precision in right:
        shares = (100 * counts[name, precision] / len(items) for counts in (right, same))
        table.add_row(name, precision, *(f"{share:.2f}" for share in shares))
    console = Console(highlight=False)
    console.print(f"{len(items)} questions")
    console.print(table)


if __name__ == "__main__":
    main()
