"""The time and memory of a model on this machine, by token budget, for a first and a second
question.

report = bench(load("build/bundle"), "paddle_recomp/assets/pictures/scene_5.png")
for row in report.rows:
    print(row.budget, row.question, row.timing.first_token, row.tokens_per_second)
"""

from paddle_recomp.commands.bench.measure import BenchConfig, Report, Row, bench
from paddle_recomp.commands.bench.table import COLUMNS, cells, print_report, report_dict, shape_line

__all__ = [
    "COLUMNS",
    "BenchConfig",
    "Report",
    "Row",
    "bench",
    "cells",
    "print_report",
    "report_dict",
    "shape_line",
]
