"""The cost of INT8 in answers: bundles of the demo model against fp32, on held-out questions.

    python -m benchmarks.int8_answers FP32_BUNDLE INT8_BUNDLE… --output docs/int8_answers.json

The scenes are held out, and questions that an export calibrates on are left out. Encoders run one
picture and one question at a time, as on an edge box; the language model is that of the fp32 bundle
for all. The report is written after each budget, and an interrupted one is
continued."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.comparing import budgets_for, checksums, fingerprint, kept_alike, progress_bar
from benchmarks.held_out import Evaluation, Item, draw_items, is_right
from export.samples import calibration_questions
from paddle_recomp.bundle import Bundle, open_bundle
from paddle_recomp.llm.onnx_decoder import decoder_files
from paddle_recomp.types import Answer
from paddle_recomp.vlm.loading import load, load_front_end
from paddle_recomp.vlm.vlm import VLM

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """One INT8 bundle against fp32 at one budget."""

    accuracy_fp32: float
    """In percent, like all following fields but the counts and the overlap."""
    accuracy_int8: float
    difference: float
    """INT8 minus fp32, in points."""
    interval: tuple[float, float]
    """The 95% interval of the difference, from scenes drawn again and again with replacement."""
    lost: int
    """Questions that only fp32 answers right."""
    gained: int
    """Questions that only INT8 answers right."""
    overlap: float
    """Mean intersection over union of the patches kept as they are."""
    tokens_fp32: float
    tokens_int8: float


def compare(
    items: Sequence[Item], expected: Sequence[Answer], found: Iterable[Answer]
) -> Comparison:
    """Compares the answers to the same items in the same order; `found` is read once, answer by
    answer."""
    pairs, overlaps, tokens = [], [], []
    for item, ours, theirs in zip(items, expected, found, strict=True):
        pairs.append((is_right(item, ours), is_right(item, theirs)))
        overlaps.append(kept_alike(ours.compressed[0], theirs.compressed[0])[0])
        tokens.append((ours.num_visual_tokens, theirs.num_visual_tokens))
    right = np.array(pairs, dtype=np.int64)
    change, accuracy = right[:, 1] - right[:, 0], 100 * right.mean(axis=0)
    mean_tokens = np.mean(tokens, axis=0)
    low, high = paired_interval(change, np.array([item.number for item in items]))
    return Comparison(
        accuracy_fp32=round(float(accuracy[0]), 2),
        accuracy_int8=round(float(accuracy[1]), 2),
        difference=round(100 * float(change.mean()), 2),
        interval=(round(100 * low, 2), round(100 * high, 2)),
        lost=int((change < 0).sum()),
        gained=int((change > 0).sum()),
        overlap=round(float(np.mean(overlaps)), 4),
        tokens_fp32=round(float(mean_tokens[0]), 2),
        tokens_int8=round(float(mean_tokens[1]), 2),
    )


def uncalibrated(items: Sequence[Item]) -> list[Item]:
    """Those whose question calibrates no export by default."""
    known = set(calibration_questions(None))
    return [item for item in items if item.question.question not in known]


def paired_interval(change: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    """The bootstrap interval of the mean of `change` [n], where members of a `group` [n] are
    drawn together: questions about one scene share its picture, so they err together."""
    _, place = np.unique(group, return_inverse=True)
    sums, sizes = np.bincount(place, weights=change), np.bincount(place)
    drawn = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def read_report(path: Path | None, about: dict[str, Any]) -> dict[str, Any]:
    """The existing report, if it is about the same questions and fp32 graphs."""
    if path is not None and path.is_file():
        report = json.loads(path.read_text(encoding="utf-8"))
        if {key: report.get(key) for key in about} == about:
            return report
    return {**about, "int8": {}}


def measure(options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Fills in what the report lacks, budget by budget."""
    reference = open_bundle(options.fp32)
    bundles = {folder.name: open_bundle(folder) for folder in options.int8}
    items = uncalibrated(draw_items(options.scenes))
    # The answers of a report are those of one language model.
    own = reference.decoder is not None and options.llm is None
    about = {
        "questions": len(items),
        "scenes": options.scenes,
        "fp32": fingerprint(reference),
        "decoder": checksums(reference, decoder_files(reference)) if own else str(options.llm),
    }
    report = read_report(options.output, about)
    for name, bundle in bundles.items():
        if report["int8"].get(name, {}).get("graphs") != fingerprint(bundle):
            report["int8"][name] = {"graphs": fingerprint(bundle), "budgets": {}}

    base = load(options.fp32, llm=options.llm)

    def evaluation(bundle: Bundle) -> Evaluation:
        vlm = VLM(load_front_end(bundle), base.answerer)
        return Evaluation(vlm, items, options.batch, one_by_one=True)

    ours, others = evaluation(reference), {k: evaluation(b) for k, b in bundles.items()}
    for budget_name, budget in budgets_for(reference.num_patches).items():
        missing = [n for n in bundles if budget_name not in report["int8"][n]["budgets"]]
        if not missing:
            continue
        asked = [budget] * len(items)
        expected = list(ours.answers(asked, progress, f"fp32, {budget_name}"))
        for name in missing:
            found = others[name].answers(asked, progress, f"{name}, {budget_name}")
            row = compare(items, expected, found)
            report["int8"][name]["budgets"][budget_name] = asdict(row)
            if options.output is not None:
                options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def print_report(console: Console, report: dict[str, Any]) -> None:
    """One line for each bundle and budget."""
    table = Table(
        "bundle", "budget", "fp32 %", "int8 %", "difference", "95%", "lost", "gained", "overlap"
    )
    for name, about in report["int8"].items():
        for budget, row in about["budgets"].items():
            table.add_row(
                name,
                budget,
                f"{row['accuracy_fp32']:.2f}",
                f"{row['accuracy_int8']:.2f}",
                f"{row['difference']:+.2f}",
                "{:+.2f} … {:+.2f}".format(*row["interval"]),
                str(row["lost"]),
                str(row["gained"]),
                f"{row['overlap']:.3f}",
            )
    console.print(f"{report['questions']} questions about {report['scenes']} held-out scenes")
    console.print(table)


def main() -> None:
    """Measures, prints the table, and writes the report as it grows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fp32", type=Path, help="A bundle in fp32.")
    parser.add_argument("int8", type=Path, nargs="+", help="Bundles of the same model in INT8.")
    parser.add_argument(
        "--llm",
        type=Path,
        help="The checkpoint of a bundle without a decoder, unless it is the demo.",
    )
    parser.add_argument("--scenes", type=int, default=260)
    parser.add_argument("--batch", type=int, default=64, help="Of the language model.")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with progress_bar() as progress:
        report = measure(options, progress)
    console = Console(width=110)
    print_report(console, report)


if __name__ == "__main__":
    main()
