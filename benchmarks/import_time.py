"""The time to import the library in fresh processes, beside the import of paddle.

python -m benchmarks.import_time
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from rich.console import Console
from rich.table import Table

MODULES = ("paddle_recomp", "paddle_recomp.vlm.vlm", "paddle_recomp.commands.main", "paddle")
RUNS = 7
CODE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def milliseconds(module: str) -> float:
    """One import in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE.format(module)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1]) * 1e3


def main() -> None:
    """Prints the table."""
    table = Table("import", f"median of {RUNS}, ms")
    for module in MODULES:
        milliseconds(module)  # fills the file cache
        median = statistics.median(milliseconds(module) for _ in range(RUNS))
        table.add_row(module, f"{median:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
