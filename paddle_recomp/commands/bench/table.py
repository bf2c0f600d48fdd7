"""A measurement as a table for people, and as plain data for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table

from paddle_recomp.bundle import Bundle
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.commands.bench.measure import FIRST, FULL, NEXT, SECOND, Report, Row
from paddle_recomp.json_files import one_line
from paddle_recomp.vlm.machine import Machine

COLUMNS = (
    "tokens",
    "asked",
    "vision",
    "text",
    "compress",
    "prefill",
    "read",
    "TTFT",
    "tok/s",
    "GB",
)
ORDINALS = {FIRST: "1st", SECOND: "2nd", NEXT: "next"}


def print_report(console: Console, report: Report, title: str) -> None:
    """A line for each budget and question, and below them the gain from compression."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in COLUMNS:
        justify: JustifyMethod = "left" if column in COLUMNS[:2] else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for row in report.rows:
        table.add_row(*cells(row))
    console.print(title, markup=False, soft_wrap=True)
    console.print(table)
    peak = f"at most {report.peak_memory / 1e9:.2f} GB in all, loading included"
    for line in (*gains(report), peak):
        console.print(line, markup=False, soft_wrap=True)
    for line in (conditions(report), machine_line(report.machine)):
        console.print(line, style="dim", markup=False, soft_wrap=True)


def cells(row: Row) -> list[str]:
    """The row as texts, below COLUMNS."""
    timing = row.timing
    exact = row.budget == str(row.visual_tokens)
    return [
        row.budget if exact else f"{row.budget} {row.visual_tokens}",
        ORDINALS[row.question],
        milliseconds(timing.vision) if row.question == FIRST else "seen",
        milliseconds(timing.text),
        milliseconds(timing.compress),
        milliseconds(timing.prefill),
        str(row.prefilled),
        milliseconds(timing.first_token),
        f"{row.tokens_per_second:.1f}",
        f"{row.peak_memory / 1e9:.2f}",
    ]


def shape_line(model: Checkpoint | Bundle) -> str:
    """The measured model, with its sizes and precisions, as one line."""
    if isinstance(model, Bundle):
        parts = [f"{model.num_patches} patches", f"encoder {model.precision}"]
        if model.decoder is not None:
            sizes = f"{model.decoder.num_layers} layers of width {model.decoder.hidden_size}"
            return ", ".join([*parts, f"decoder {model.decoder.precision}, {sizes}"])
        return ", ".join([*parts, f"language model of {one_line(model.language_model.name)}"])
    vision, language = model.spec.vision, model.spec.language
    return (
        f"{vision.num_patches} patches, encoder {vision.num_layers} layers of width "
        f"{vision.hidden_size}, decoder {language.num_layers} of {language.hidden_size}, in Paddle"
    )


def milliseconds(seconds: float) -> str:
    """A number with its significant digits."""
    return f"{seconds * 1e3:.{0 if seconds >= 0.1 else 1}f}"


def gains(report: Report) -> list[str]:
    """The savings of each budget, as lines."""
    budgets = dict.fromkeys(row.budget for row in report.rows if row.budget != FULL)
    return [
        f"{budget}{' tokens' * budget.isdigit()}: "
        f"prefill {report.prefill_speed(budget):.1f} times as fast as {FULL}, "
        f"second TTFT {report.second_share(budget):.0%} of the first of {FULL}, "
        f"next TTFT {report.next_share(budget):.0%} of the next of {FULL}"
        for budget in budgets
    ]


def conditions(report: Report) -> str:
    """The meaning of the columns, as one line."""
    row = report.rows[0]
    when = "" if report.peaks_apart else " since the process began"
    return (
        f"Times in ms, medians of {len(row.samples)}; answers of {row.new_tokens} tokens. next: "
        "the second question in a conversation that keeps the first one's KV cache; read: "
        "positions of the prefill; TTFT: until the first token; GB: peak resident memory of the "
        f"process{when}, mapped files included."
    )


def machine_line(machine: Machine) -> str:
    """The machine, as one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    cores = f"{machine.cores} core" + "s" * (machine.cores > 1)
    return f"{machine.cpu}, {cores}, {machine.system}, {versions}"


def report_dict(report: Report) -> dict[str, Any]:
    """A report as plain data; times in milliseconds, memory in bytes."""
    return {
        "patches": report.num_patches,
        "rows": [_row_dict(row) for row in report.rows],
        "gains": {
            budget: {
                "prefill_speed": round(report.prefill_speed(budget), 3),
                "second_share": round(report.second_share(budget), 4),
                "next_share": round(report.next_share(budget), 4),
            }
            for budget in dict.fromkeys(row.budget for row in report.rows)
        },
        "peak_memory": report.peak_memory,
        "peaks_apart": report.peaks_apart,
        "machine": asdict(report.machine),
    }


def _row_dict(row: Row) -> dict[str, Any]:
    return {
        "budget": row.budget,
        "question": row.question,
        "visual_tokens": row.visual_tokens,
        "prefilled": row.prefilled,
        "new_tokens": row.new_tokens,
        "repeats": len(row.samples),
        "timing_ms": {name: round(value * 1e3, 3) for name, value in asdict(row.timing).items()},
        "tokens_per_second": round(row.tokens_per_second, 2),
        "peak_memory": row.peak_memory,
    }
