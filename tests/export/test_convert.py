"""One conversion: by whatever name its package is installed, and without help from pip."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import export
import paddle_recomp
from export.convert import Job
from export.paddle_int8 import _lent_packages
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.compression.config import CompressionConfig

# In a process of its own, like every conversion. The exporter's own optimizer would start pip to
# install what it needs.
CONVERT = """
import os, subprocess, sys
import paddle2onnx
from paddle_recomp_export import convert

def refused(*arguments, **options):
    raise AssertionError(f"a process was started: {arguments}")

def spied(*arguments, **options):
    print("optimize_tool:", repr(options.get("optimize_tool")))
    return exported(*arguments, **options)

exported, paddle2onnx.export = paddle2onnx.export, spied
subprocess.Popen = os.system = os.posix_spawn = refused
convert.main(sys.argv[1])
print("loaded:", sorted({"pip", "polygraphy", "onnxoptimizer", "export"} & set(sys.modules)))
"""


def test_a_conversion_runs_no_pip(golden_checkpoint: Checkpoint, tmp_path: Path) -> None:
    output = tmp_path / "text.onnx"
    job = Job(
        graph="text",
        model_dir=str(golden_checkpoint.model_dir),
        clip_dir=str(golden_checkpoint.clip_dir),
        config=CompressionConfig().as_dict(),
        reads=(),
        operators="onnx",
        metadata={},
        output=str(output),
    )
    for name, package in (("paddle_recomp_export", export), ("paddle_recomp", paddle_recomp)):
        assert package.__file__
        (tmp_path / name).symlink_to(Path(package.__file__).parent)
    command = [sys.executable, "-c", CONVERT, json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert output.stat().st_size > 0
    lines = done.stdout.splitlines()
    assert "optimize_tool: 'None'" in lines
    assert "loaded: []" in lines


def test_another_interpreter_is_lent_two_packages_and_nothing_else(tmp_path: Path) -> None:
    code = "import sys, export, paddle_recomp; print(export.__file__, paddle_recomp.__file__)"
    with _lent_packages() as folder:
        assert sorted(path.name for path in Path(folder).iterdir()) == ["export", "paddle_recomp"]
        done = subprocess.run(
            [sys.executable, "-S", "-c", code],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PYTHONPATH": folder},
            check=False,
        )
        # Without site-packages, the library's own imports fail, after it was found.
        assert "numpy" in done.stderr
        assert "No module named 'export'" not in done.stderr
    assert not Path(folder).exists()
