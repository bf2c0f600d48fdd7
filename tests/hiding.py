"""Processes in which some packages cannot be imported, as if they were not installed."""

from __future__ import annotations

import subprocess
import sys

_HIDE = """
import sys, importlib.abc
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
"""


def without(*packages: str) -> str:
    """What a program has to begin with."""
    return _HIDE.format(packages=packages)


def recomp_without(packages: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command `recomp`."""
    code = (
        without(*packages)
        + "from paddle_recomp.commands.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
