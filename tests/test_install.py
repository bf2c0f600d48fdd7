"""What a user of the light path gets from `pip install .`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from export.build import export
from paddle_recomp.demo import demo_pictures

ROOT = Path(__file__).parents[1]


def install(folder: Path, what: str) -> tuple[Path, str]:
    """The programs of a new environment, and what is installed in it."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    tools = folder / "venv" / "bin"
    subprocess.run([tools / "pip", "install", "-q", what], check=True)
    command = [str(tools / "pip"), "list", "--format=freeze"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return tools, done.stdout.lower()


@pytest.mark.slow
def test_light_install_reads_checkpoints_without_paddle(tmp_path: Path) -> None:
    tools, installed = install(tmp_path, str(ROOT))
    for heavy in ("paddlepaddle", "paddlenlp", "torch", "transformers", "onnx", "onnxruntime"):
        assert f"{heavy}==" not in installed
    # From another folder, so that the checkout cannot stand in for what was installed.
    done = subprocess.run(
        [tools / "recomp", "info", "demo"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "256" in done.stdout


@pytest.mark.slow
def test_the_onnx_extra_answers_from_a_bundle(tmp_path: Path) -> None:
    bundle = export("demo", tmp_path / "bundle").folder
    tools, installed = install(tmp_path, f"{ROOT}[onnx]")
    for heavy in ("paddlepaddle", "paddlenlp", "torch", "transformers", "onnx"):
        assert f"{heavy}==" not in installed
    (asked, *_), *_ = demo_pictures().values()
    done = subprocess.run(
        [tools / "recomp", "ask", asked.picture, asked.question, "--model", bundle, "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answer"] == asked.expected
