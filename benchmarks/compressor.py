"""Time of the compressor in eager Paddle against the public code's form, a loop over centres.

    python -m benchmarks.compressor

Both start from what the towers give, score the text and end with the tokens in numpy. They take
turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import numpy.typing as npt
import paddle
from rich.console import Console
from rich.table import Table

from benchmarks.centre_loop import compress_by_centres
from paddle_recomp.compression import ops
from paddle_recomp.compression.config import preset
from paddle_recomp.compression.eager import compress
from paddle_recomp.config import TokenBudget
from paddle_recomp.types import Tensor, VisionFeatures

Array = npt.NDArray[np.float32]


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


def check(vision: VisionFeatures, text: Tensor) -> None:
    """Raises: ValueError when the loop and `faithful` give other tokens."""
    ours = compress(vision, text, preset("faithful"))
    for i, theirs in enumerate(by_loop(vision, text)):
        found = ours.tokens[i, : ours.count[i]].numpy()
        if found.shape != theirs.shape or not np.allclose(found, theirs, rtol=1e-4, atol=1e-4):
            raise ValueError(f"picture {i}: {found.shape} and {theirs.shape} tokens, or others")


def by_loop(vision: VisionFeatures, text: Tensor) -> list[Array]:
    """The tokens of each picture by the loop."""
    score = ops.cosine_scores(text, vision.patch_embeds)
    return [
        compress_by_centres(
            vision.features[i], vision.keys[i], vision.visual_score[i], score[i]
        ).tokens.numpy()
        for i in range(len(score))
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patches", type=int, default=576)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=31)
    options = parser.parse_args()

    table = Table(
        *("pictures", "preset", "budget", "tokens", "centres"),
        *("ours ms", "loop ms", "loop / ours"),
    )
    for batch in (1, 8):
        given = crafted(batch, options.patches, options.width, 768)
        check(*given)
        for name, budget in product(("faithful", "corrected"), (TokenBudget(), TokenBudget(64))):
            ours = partial(compress, *given, preset(name), budget)
            out = ours()
            times = median_pair(
                lambda run=ours: run().tokens.numpy(),  # type: ignore[misc]
                partial(by_loop, *given),
                options.runs,
            )
            asked = "dynamic" if budget == TokenBudget() else f"exactly {budget.tokens}"
            merged = (out.centre.numpy() >= 0).sum(axis=1).mean()
            table.add_row(
                *(str(batch), name, asked, f"{out.count.numpy().mean():.0f}", f"{merged:.0f}"),
                *(f"{value:.{digits}f}" for value, digits in zip(times, (1, 1, 2), strict=True)),
            )
    console = Console(width=100)
    console.print(
        f"N={options.patches}, C={options.width}, P=768, float32, "
        f"paddle {paddle.__version__}, medians of {options.runs} pairs"
    )
    console.print(table)


if __name__ == "__main__":
    main()
