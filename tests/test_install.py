"""What a user of the light path gets from `pip install .`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_light_install_reads_checkpoints_without_paddle(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    tools = tmp_path / "venv" / "bin"
    subprocess.run([tools / "pip", "install", "-q", str(ROOT)], check=True)
    installed = subprocess.run(
        [tools / "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    ).stdout.lower()
    for heavy in ("paddlepaddle", "paddlenlp", "torch", "transformers", "onnx"):
        assert f"{heavy}==" not in installed
    # From another folder, so that the checkout cannot stand in for what was installed.
    done = subprocess.run(
        [tools / "recomp", "info", "demo"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "256" in done.stdout
