"""The choice of tokens with INT8 on photographs. It needs no language model, so any bundle will do.

    python -m benchmarks.int8_tokens FP32_BUNDLE INT8_BUNDLE [--images DIR]

Every picture is asked every question, one at a time. No export calibrates on these questions, nor
on these photographs, which are scikit-image's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.comparing import budgets_for, fingerprint, kept_alike, progress_bar
from export.samples import EVALUATION_QUESTIONS, evaluation_photos, load_pictures
from paddle_recomp.bundle import Bundle, open_bundle
from paddle_recomp.bundle.comparison import mean_cosine
from paddle_recomp.bundle.contract import OUTPUTS
from paddle_recomp.types import Stage
from paddle_recomp.vlm.front_end import SeenImage, VisualFrontEnd
from paddle_recomp.vlm.loading import chat_template, load_front_end


def photographs(folder: Path | None) -> list[Image.Image]:
    """The pictures of a folder, up to 16; by default
    photographs that no export calibrates on."""
    if folder is not None:
        count = len(list(folder.iterdir()))
        return list({id(one): one for one in load_pictures(folder, count)}.values())
    return evaluation_photos()


def see(bundle: Bundle, pictures: Sequence[Image.Image], progress: Progress) -> list[SeenImage]:
    """Runs a front end and frees it afterwards, because two of full size take a lot of memory."""
    front_end = load_front_end(bundle)
    seen = progress.track(pictures, description=f"{bundle.folder.name}, {bundle.precision}")
    return [front_end.see([picture])[0] for picture in seen]


def tower_cosines(expected: Sequence[SeenImage], found: Sequence[SeenImage]) -> dict[str, float]:
    """Mean cosine of the vectors of each output of the vision tower."""
    return {
        name: round(
            float(
                np.mean(
                    [
                        mean_cosine(a.features[name], b.features[name])
                        for a, b in zip(expected, found, strict=True)
                    ]
                )
            ),
            6,
        )
        for name in OUTPUTS["vision"]
    }


def compare_choices(
    front_ends: tuple[VisualFrontEnd, VisualFrontEnd],
    texts: Sequence[str],
    seen: tuple[Sequence[SeenImage], Sequence[SeenImage]],
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """By budget, over the texts that CLIP reads: the mean overlap of the patches kept, the overlap
    that chance alone would give, the mean cosine of the embeddings that both have, and the tokens
    of each."""
    rows = {}
    size = seen[0][0].num_patches
    for name, budget in budgets_for(size).items():
        found = []
        for images in progress.track(list(zip(*seen, strict=True)), description=name):
            for text in texts:
                first, second = (
                    front_end.compress([image], [text], budget)[0].compressed[0]
                    for front_end, image in zip(front_ends, images, strict=True)
                )
                kept = [int(np.isin(c.stage, KEPT).sum()) for c in (first, second)]
                both = kept[0] * kept[1] / size
                chance = both / (sum(kept) - both)
                tokens = [int(c.count[0]) for c in (first, second)]
                found.append([*kept_alike(first, second), chance, *tokens])
        keys = ("overlap", "cosine", "chance", "tokens_fp32", "tokens_int8")
        rows[name] = {
            key: round(float(value), 6)
            for key, value in zip(keys, np.mean(found, axis=0), strict=True)
        }
    return rows


KEPT = (int(Stage.VISUAL), int(Stage.TEXT))


def measure(options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """The whole report."""
    reference, other = (open_bundle(folder) for folder in (options.fp32, options.int8))
    pictures = photographs(options.images)
    seen = see(reference, pictures, progress), see(other, pictures, progress)
    front_ends = load_front_end(reference), load_front_end(other)
    template = chat_template(reference)
    texts = [front_ends[0].text_of(question, 1, template) for question in EVALUATION_QUESTIONS]
    scores = [one.features["visual_score"] for one in seen[0]]
    return {
        "pictures": len(pictures),
        "questions": len(EVALUATION_QUESTIONS),
        "patches": reference.num_patches,
        "fp32": fingerprint(reference),
        "int8": fingerprint(other),
        "cosine": tower_cosines(*seen),
        # The standard deviation over the patches of a picture, as a share of their mean.
        "spread_of_visual_score": round(float(np.mean([s.std() / s.mean() for s in scores])), 4),
        "budgets": compare_choices(front_ends, texts, seen, progress),
    }


def print_report(console: Console, report: dict[str, Any]) -> None:
    """Cosines in a line, choices by budget."""
    console.print(
        f"{report['pictures']} pictures, {report['questions']} questions each, "
        f"{report['patches']} patches; visual score varies by "
        f"{100 * report['spread_of_visual_score']:.0f}% of its mean"
    )
    cosines = (f"{name} {value:.5f}" for name, value in report["cosine"].items())
    console.print("cosine to fp32: " + ", ".join(cosines))
    table = Table(
        "budget", "overlap", "by chance", "cosine of common", "tokens fp32", "tokens int8"
    )
    for name, row in report["budgets"].items():
        table.add_row(
            name,
            f"{row['overlap']:.3f}",
            f"{row['chance']:.3f}",
            f"{row['cosine']:.5f}",
            f"{row['tokens_fp32']:.1f}",
            f"{row['tokens_int8']:.1f}",
        )
    console.print(table)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fp32", type=Path, help="A bundle in fp32.")
    parser.add_argument("int8", type=Path, help="A bundle of the same model in INT8.")
    parser.add_argument("--images", type=Path, help="A folder of other pictures.")
    parser.add_argument("--output", type=Path, help="The report as JSON.")
    options = parser.parse_args()
    with progress_bar() as progress:
        report = measure(options, progress)
    print_report(Console(width=110), report)
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
