"""What reading costs: no heavy imports, and about one tensor of memory at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.checkpoint.sparse import write_sparse_model


def run(program: str, *arguments: object) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_imports_nothing_heavy() -> None:
    program = """
import sys
import paddle_recomp.checkpoint
print([name for name in ("paddle", "torch", "transformers", "safetensors") if name in sys.modules])
"""
    assert run(program).strip() == "[]"


def test_one_tensor_in_memory_at_a_time(tmp_path: Path, clip: Path) -> None:
    sizes = write_sparse_model(tmp_path)
    program = """
import re, sys
from pathlib import Path
from paddle_recomp.checkpoint import open_checkpoint

def peak():
    # Not getrusage, whose peak a process inherits from the one that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
checkpoint = open_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
opened = peak()
total = 0
for name, array in checkpoint.parameters("language_model"):
    array.sum()
    total += array.nbytes
print(opened - before, peak() - before, total)
"""
    opened, growth, total = map(int, run(program, tmp_path, clip).split())
    assert total > 300e6
    assert opened < 16e6
    assert growth < max(sizes)
