"""Time of the compressor in eager Paddle against a loop of the public code's form.

python -m benchmarks.compressor
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import paddle
from rich.console import Console
from rich.table import Table

from benchmarks.loop_reference import compress_by_loops
from paddle_recomp.compression import ops
from paddle_recomp.compression.config import preset
from paddle_recomp.compression.eager import compress
from paddle_recomp.config import TokenBudget
from paddle_recomp.types import Tensor, VisionFeatures


def crafted(batch: int, patches: int, width: int, joint: int) -> tuple[VisionFeatures, Tensor]:
    """Random tower outputs in which some patches stand out visually and others by the text."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(batch, patches)) + 4 * (rng.random((batch, patches)) < 0.06)
    score = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    text = rng.normal(size=(batch, joint))
    related = rng.random((batch, patches, 1)) < 0.04
    embeds = rng.normal(size=(batch, patches, joint)) + related * text[:, None]
    arrays = (
        rng.normal(size=(batch, patches, width)),
        rng.normal(size=(batch, patches, width)),
        score,
        embeds,
    )
    vision = VisionFeatures(*(paddle.to_tensor(x.astype("float32")) for x in arrays))
    return vision, paddle.to_tensor(text.astype("float32"))


def median_pair(
    ours: Callable[[], object], theirs: Callable[[], object], runs: int
) -> tuple[float, float, float]:
    """Median milliseconds of each, and the median of their ratios, run in turn."""
    pairs = []
    for _ in range(runs + 1):
        marks = [time.perf_counter()]
        for run in (ours, theirs):
            run()
            marks.append(time.perf_counter())
        pairs.append((marks[1] - marks[0], marks[2] - marks[1]))
    pairs = pairs[1:]  # the first pair pays for set-up
    return (
        statistics.median(a for a, _ in pairs) * 1e3,
        statistics.median(b for _, b in pairs) * 1e3,
        statistics.median(b / a for a, b in pairs),
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=576)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()

    table = Table("preset", "budget", "tokens", "ours ms", "loop ms", "loop / ours")
    vision, text = crafted(1, options.patches, options.width, 768)
    text_score = ops.cosine_scores(text, vision.patch_embeds)

    def loop() -> object:
        return compress_by_loops(
            vision.features[0], vision.keys[0], vision.visual_score[0], text_score[0]
        ).tokens.numpy()

    for name in ("faithful", "corrected"):
        for budget in (TokenBudget(), TokenBudget(tokens=64)):
            config = preset(name)
            count = int(compress(vision, text, config, budget).count[0])
            ours, theirs, ratio = median_pair(
                lambda c=config, b=budget: compress(vision, text, c, b).tokens.numpy(),  # type: ignore[misc]
                loop,
                options.runs,
            )
            asked = "dynamic" if budget == TokenBudget() else f"exactly {budget.tokens}"
            table.add_row(name, asked, str(count), f"{ours:.1f}", f"{theirs:.1f}", f"{ratio:.1f}")
    console = Console()
    console.print(
        f"one image, N={options.patches}, C={options.width}, P=768, float32, "
        f"paddle {paddle.__version__}, medians of {options.runs} pairs"
    )
    console.print(table)


if __name__ == "__main__":
    main()
