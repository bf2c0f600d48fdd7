"""The machine that this process runs on, and the most memory that it took."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

_RUNTIMES = ("onnxruntime", "paddle", "paddlenlp")
_PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Machine:
    """A machine, as it is written beside a measurement."""

    cpu: str
    cores: int
    """That this process may use."""
    system: str
    versions: dict[str, str]
    """Of Python, and of the runtimes that are loaded."""


def this_machine() -> Machine:
    """The machine, as the system describes it."""
    versions = {"python": platform.python_version()}
    for name in _RUNTIMES:
        if name in sys.modules:
            versions[name] = str(sys.modules[name].__version__)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return Machine(_cpu(), cores, f"{platform.system()} {platform.machine()}", versions)


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or "unknown processor"


def reset_peak() -> bool:
    """Forgets the peak of this process's memory; False where the system cannot."""
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory() -> int:
    """The most resident memory of this process in bytes, mapped files included, since the last
    `reset_peak`, or since it began."""
    found = _status("VmHWM")
    if found is not None:
        return found
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def anonymous_memory() -> int | None:
    """The resident memory of this process in bytes, without mapped files; None where the system
    does not say."""
    return _status("RssAnon")


def _status(field: str) -> int | None:
    """A size in bytes from the status that Linux keeps of this process."""
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", (_PROCESS / "status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
