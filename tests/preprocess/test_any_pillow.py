"""Prepared pixels depend on the picture and the processor, never on the installed Pillow.

Up to 12.1 Pillow resizes the width of a picture first, then its height. When it shrinks a picture,
12.2 resizes the height first if that is more than a hundred times the width, 13 if it is more than
twice the width. The slow test runs the tests of this folder that prepare or read pictures under
versions of all three kinds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from paddle_recomp.preprocess import ImageProcessor
from paddle_recomp.preprocess.image_processor import resize
from tests.golden.record_cases import GENERATED, digest, generate
from tests.preprocess.by_steps import prepare

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "prepared_pixels.json"
RECORDED: dict[str, str] = json.loads(GOLDEN.read_text())["sha256"]
WIDTH_IS_ALWAYS_FIRST = [int(number) for number in PIL.__version__.split(".")[:2]] <= [12, 1]


@pytest.mark.parametrize("case", RECORDED)
def test_pixels_are_those_of_transformers_with_pillow_12_1(case: str) -> None:
    name, size, crop, aspect = case.split("-")
    processor = ImageProcessor(int(size), int(crop), aspect=aspect)  # type: ignore[arg-type]
    assert digest(processor([generate(*GENERATED[name])])[0]) == RECORDED[case]


@settings(deadline=None)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    size=st.integers(1, 50),
    crop=st.integers(1, 50),
    aspect=st.sampled_from(["crop", "pad"]),
)
@example(width=264, height=607, size=224, crop=224, aspect="crop")
@example(width=607, height=264, size=224, crop=336, aspect="pad")
@example(width=1, height=70, size=50, crop=50, aspect="crop")
def test_the_steps_say_everything(
    width: int, height: int, size: int, crop: int, aspect: str
) -> None:
    processor = ImageProcessor(size, crop, aspect=aspect)  # type: ignore[arg-type]
    about = json.loads(json.dumps(processor.steps()))
    image = generate(width, height)
    np.testing.assert_array_equal(processor([image])[0], prepare(np.asarray(image), about))


@settings(deadline=None)
@given(
    old=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    new=st.tuples(st.integers(1, 300), st.integers(1, 300)),
)
@example(old=(264, 607), new=(224, 515))
@example(old=(224, 224), new=(224, 224))
@example(old=(1, 300), new=(300, 1))
def test_one_call_of_pillow_does_the_same(old: tuple[int, int], new: tuple[int, int]) -> None:
    columns_lost, rows_lost = old[0] - new[0], old[1] - new[1]
    ordinary = rows_lost <= max(0, 2 * columns_lost) and old[1] <= 100 * old[0]
    assume(ordinary or WIDTH_IS_ALWAYS_FIRST)
    image = generate(*old)
    expected = np.asarray(image.resize(new, Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(np.asarray(resize(image, *new)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["11.0.0", "12.1.1", "12.3.0", "13.0.0"])
def test_with_another_pillow(version: str, tmp_path: Path) -> None:
    """Only Pillow is another one: it stands in front of the environment's own."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path)]
    subprocess.run([*pip, f"pillow=={version}"], check=True)
    places = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    code = "import PIL; print(PIL.__version__)"
    names = ("test_any_pillow.py", "test_image_processor.py", "test_images.py")
    tests = [str(Path(__file__).with_name(name)) for name in names]
    for command, expected in ((["-c", code], version), (["-m", "pytest", "-q", *tests], "passed")):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **places},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        assert expected in done.stdout
