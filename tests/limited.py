"""Code in a process with little memory and little time, so that a hang or a swelling is a failure
and not the end of the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_LIMITED = """
import resource, sys
size = {megabytes} * 2**20
from paddle_recomp.preprocess import load_image
import paddle_recomp.checkpoint, paddle_recomp.bundle
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + size, used + size))
resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))
from paddle_recomp.errors import RecompError
try:
    exec(sys.argv[1])
except RecompError as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""


def limited(code: str, megabytes: int = 400, seconds: int = 60, folder: Path | None = None) -> str:
    """Runs code with so many megabytes beyond those of the imported library, and so many seconds
    of a processor; what it printed. A `RecompError` is printed as its class and message.

    Raises: AssertionError when the code fails in any other way, or says anything on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED.format(megabytes=megabytes, seconds=seconds), code],
        capture_output=True,
        text=True,
        errors="replace",
        cwd=folder,
        check=False,
        timeout=10 * seconds,
    )
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-2000:]}"
    assert not done.stderr, done.stderr[:2000]
    return done.stdout.strip()
