"""A picture to ask about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of noise with a few bright squares."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, size=(240, 320, 3), dtype=np.uint8)
    for x, y in ((60, 40), (140, 150), (240, 60)):
        pixels[y : y + 40, x : x + 40] = rng.integers(100, 256, size=3)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    return path
