"""The choice of tokens in Paddle Inference below float32, against float32.

    python -m benchmarks.paddle_tokens build/demo [--scenes 200] [--tokens 32]

The bundle is one of the demo's, exported with --paddle. Every scene is a held-out picture with one
question, each run by itself. The overlap is the number of patches that both keep as single patches,
divided by the number that either keeps."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress

from benchmarks.comparing import kept_alike, progress_bar
from benchmarks.held_out import draw_items
from paddle_recomp.bundle import Bundle, open_bundle
from paddle_recomp.config import TokenBudget
from paddle_recomp.types import VisualTokens
from paddle_recomp.vlm.loading import load_front_end


@dataclass(frozen=True)
class Agreement:
    """One precision against float32."""

    overlap: float
    """Mean over the questions."""
    scatter: float
    """Standard deviation of single questions around it."""
    same_patches: float
    """Share of the questions for which both keep the same patches."""
    same_counts: float
    """Share of the questions for which both have the same number of tokens of each stage."""


def choices(
    bundle: Bundle, precision: str, scenes: int, budget: TokenBudget, progress: Progress
) -> list[VisualTokens]:
    """The tokens of one question about each scene."""
    front_end = load_front_end(bundle, backend="paddle", precision=precision)
    items = {item.number: item for item in draw_items(scenes)}
    found: list[VisualTokens] = []
    for item in progress.track(items.values(), description=precision):
        seen = front_end.see([Image.fromarray(item.scene.image)])
        (prompt,) = front_end.compress(seen, [item.question.question], budget)
        found += prompt.compressed
    return found


def compare(expected: Sequence[VisualTokens], found: Sequence[VisualTokens]) -> Agreement:
    """Compares the tokens of the same questions in the same order."""
    pairs = list(zip(expected, found, strict=True))
    overlaps = np.array([kept_alike(*pair)[0] for pair in pairs])
    return Agreement(
        overlap=float(overlaps.mean()),
        scatter=float(overlaps.std()),
        same_patches=float(np.mean(overlaps == 1)),
        same_counts=float(np.mean([_counts(one) == _counts(other) for one, other in pairs])),
    )


def _counts(tokens: VisualTokens) -> Counter[int]:
    return Counter(tokens.stage[0].tolist())


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()

    bundle = open_bundle(options.bundle)
    precisions = bundle.paddle.precisions if bundle.paddle is not None else ()
    budget, rows = TokenBudget(tokens=options.tokens), []
    with progress_bar() as progress:
        expected = choices(bundle, "fp32", options.scenes, budget, progress)
        for precision in precisions:
            if precision != "fp32":
                found = choices(bundle, precision, options.scenes, budget, progress)
                rows.append((precision, compare(expected, found)))
    print(f"{len(expected)} questions, {options.tokens} tokens\n")
    print("| precision | overlap | its scatter | same patches | same counts by stage |")
    print("|---|---|---|---|---|")
    for precision, one in rows:
        print(
            f"| {precision} | {one.overlap:.3f} | {one.scatter:.3f} | {one.same_patches:.0%} | "
            f"{one.same_counts:.0%} |"
        )


if __name__ == "__main__":
    main()
