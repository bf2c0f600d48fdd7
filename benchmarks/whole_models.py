"""Whole models, measured as by `recomp bench`, as the tables of docs/numbers.md.

    python -m benchmarks.whole_models build/tiny-int4 [build/7b-int4 ...]

Bundles or checkpoints are measured one after the other, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from paddle_recomp.commands.bench import COLUMNS, BenchConfig, Report, bench, cells, shape_line
from paddle_recomp.commands.bench.measure import FIRST, FULL
from paddle_recomp.commands.bench.table import conditions, machine_line
from paddle_recomp.commands.console import quiet_paddle, warnings_as_lines
from paddle_recomp.vlm.demo import demo_pictures
from paddle_recomp.vlm.loading import find, load

GAINS = (
    "tokens",
    "prefill",
    "second TTFT of the first of full",
    "next TTFT of the next of full",
    "peak of the process, GB",
)


def measure(model: str, new_tokens: int, repeats: int) -> dict[str, Any]:
    """The lines of both tables, and the text above them."""
    config = BenchConfig(new_tokens=new_tokens, repeats=repeats)
    report = bench(load(model), next(iter(demo_pictures())), config)
    return {
        "rows": [cells(row) for row in report.rows],
        "gains": gains(report),
        "shape": shape_line(find(model)),
        "conditions": conditions(report),
        "machine": machine_line(report.machine),
    }


def gains(report: Report) -> list[list[str]]:
    """The savings of each budget, below GAINS."""
    return [
        [
            row.budget,
            f"{report.prefill_speed(row.budget):.2f} times as fast",
            f"{report.second_share(row.budget):.1%}",
            f"{report.next_share(row.budget):.1%}",
            f"{report.peak_memory / 1e9:.2f}",
        ]
        for row in report.rows
        if row.question == FIRST and row.budget != FULL
    ]


def in_own_process(model: str, new_tokens: int, repeats: int) -> dict[str, Any]:
    """`measure` in a process of its own, so that nothing else has taken memory."""
    about = json.dumps([model, new_tokens, repeats])
    command = [sys.executable, "-m", "benchmarks.whole_models", "--measure", about]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def markdown(columns: tuple[str, ...], found: dict[str, dict[str, Any]], key: str) -> str:
    """The lines of all models in one table; a model is named in its first one."""
    lines = [f"| model | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for model, about in found.items():
        for number, row in enumerate(about[key]):
            lines.append(f"| {'' if number else Path(model).name} | {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints both tables."""
    # This imports paddle, which a process that measures a bundle must not hold.
    from benchmarks.comparing import progress_bar

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--new-tokens", type=int, default=BenchConfig.new_tokens)
    parser.add_argument("--repeats", type=int, default=BenchConfig.repeats)
    options = parser.parse_args()
    found = {}
    with progress_bar() as bar:
        for model in bar.track(options.models, description="measuring"):
            found[model] = in_own_process(model, options.new_tokens, options.repeats)
    for model, about in found.items():
        print(f"{model}: {about['shape']}")
    last = list(found.values())[-1]
    print("", markdown(COLUMNS, found, "rows"), "", markdown(GAINS, found, "gains"), sep="\n")
    print("", last["conditions"], last["machine"], sep="\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        with quiet_paddle(), warnings_as_lines():
            print(json.dumps(measure(*json.loads(sys.argv[2]))))
    else:
        main()
