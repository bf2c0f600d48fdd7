"""The program of docs/bundle.md, exactly as it stands there, where only its imports exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from paddle_recomp.bundle import Bundle
from paddle_recomp.config import TokenBudget
from paddle_recomp.vlm.loading import find_checkpoint, load_front_end
from tests.hiding import without

DOCUMENT = Path(__file__).parents[2] / "docs" / "bundle.md"
QUESTION = "What color is the Circle?"

HIDE = without("paddle", "paddlenlp", "paddle_recomp", "export", "onnx")


def program() -> str:
    (text,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return str(text)


def test_it_is_short() -> None:
    assert len(program().splitlines()) <= 21, "20, and the empty one behind the imports"


def test_it_gives_what_the_runner_gives(demo_bundle: Bundle, picture: Path, tmp_path: Path) -> None:
    output = tmp_path / "visual_embeds.npy"
    command = [sys.executable, "-I", "-c", HIDE + program(), str(demo_bundle.folder)]
    subprocess.run([*command, str(picture), QUESTION, str(output)], check=True, cwd=tmp_path)
    found = np.load(output)
    for model in (demo_bundle, find_checkpoint("demo")):
        front_end = load_front_end(model)
        (prompt,) = front_end.compress(front_end.see([picture]), [QUESTION], TokenBudget())
        expected = prompt.compressed[0].embeds
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
