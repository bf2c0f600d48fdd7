"""The reports on accuracy as the tables of docs/numbers.md.

python -m benchmarks.tables docs/demo_accuracy.json
python -m benchmarks.tables docs/int8_answers.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

BUDGETS = ("full", "dynamic", "12.5%", "25%")
KINDS = (
    "digit_of_color",
    "color_of_digit",
    "shape_of_color",
    "color_of_shape",
    "where",
    "how_many",
)


def comparison(report: dict[str, Any]) -> str:
    """Method by method at equal budgets."""
    lines = [
        "| budget | method | tokens | right % | right % where visual-only drops the object "
        "| of the asked object's patches kept % |",
        "|---|---|---|---|---|---|",
    ]
    for budget in BUDGETS:
        rows = report[budget]
        dropped = rows.get("questions_dropped_by_visual")
        for name, row in rows.items():
            if isinstance(row, dict):
                gone = row["dropped_by_visual"]
                lines.append(
                    f"| {budget} | {name} | {row['mean_tokens']:.1f} | {accuracy(row)} | "
                    + ("–" if gone is None else f"{gone:.1f} ({dropped} questions)")
                    + f" | {row['object_patches_kept']:.1f} |"
                )
    return "\n".join(lines)


def accuracy(row: dict[str, Any]) -> str:
    """A mean over seeds is followed by the lowest and the highest accuracy of a seed."""
    seeds = row.get("accuracy_by_seed")
    return f"{row['accuracy']:.1f}" + (f" ({min(seeds):.1f}–{max(seeds):.1f})" if seeds else "")


def by_kind(report: dict[str, Any], budget: str) -> str:
    """Accuracy for each kind of question."""
    lines = ["| method | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    rows = {"uncompressed": report["full"]["uncompressed"], **report[budget]}
    for name, row in rows.items():
        if isinstance(row, dict):
            cells = (f"{row['by_kind'][kind]:.1f}" for kind in KINDS)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ablation(report: dict[str, Any]) -> str:
    """`corrected` with one switch turned."""
    lines = [
        "| corrected, but | right % | where visual-only drops it | object's patches kept % |",
        "|---|---|---|---|",
    ]
    for name, row in report["ablation_12.5%"].items():
        gone = row["dropped_by_visual"]
        lines.append(
            f"| {name} | {row['accuracy']:.1f} | {'–' if gone is None else f'{gone:.1f}'} | "
            f"{row['object_patches_kept']:.1f} |"
        )
    return "\n".join(lines)


def int8(report: dict[str, Any]) -> str:
    """Every INT8 bundle against fp32, budget by budget."""
    lines = [
        "| INT8 | budget | fp32 % | INT8 % | difference, points | 95% interval | lost | gained "
        "| overlap |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, about in report["int8"].items():
        for budget, row in about["budgets"].items():
            low, high = (_signed(bound) for bound in row["interval"])
            lines.append(
                f"| {name} | {budget} | {row['accuracy_fp32']:.2f} | {row['accuracy_int8']:.2f} | "
                f"{_signed(row['difference'])} | {low} to {high} | {row['lost']} | "
                f"{row['gained']} | {row['overlap']:.3f} |"
            )
    return "\n".join(lines)


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−") if points else "0"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    report = json.loads(parser.parse_args().report.read_text(encoding="utf-8"))
    if "int8" in report:
        print(int8(report))
        return
    print(comparison(report), by_kind(report, "12.5%"), ablation(report), sep="\n\n")


if __name__ == "__main__":
    main()
