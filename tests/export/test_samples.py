"""Nothing evaluates that calibrates: no picture, no part of one, no question."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from export.samples import (
    CALIBRATION_PHOTOS,
    EVALUATION_PHOTOS,
    EVALUATION_QUESTIONS,
    calibration_pictures,
    calibration_questions,
    evaluation_photos,
    evaluation_pictures,
    load_pictures,
    load_questions,
)
from paddle_recomp.vlm.demo import demo_pictures
from training.scenes import make_scene

SIDE = 8
"""Pixels of a window by which parts of pictures are recognised."""
FACTORS = np.random.default_rng(0).integers(1, 2**40, SIDE * SIDE)


def windows(picture: Image.Image) -> np.ndarray:
    """All windows of a picture in grey [h, w, SIDE, SIDE]."""
    grey = np.asarray(picture.convert("L"), np.int64)
    return np.lib.stride_tricks.sliding_window_view(grey, (SIDE, SIDE))


def sums(picture: Image.Image) -> np.ndarray:
    """A number for each window, which is the same for the same pixels."""
    seen = windows(picture)
    found = np.zeros(seen.shape[:2], np.int64)
    for place, factor in enumerate(FACTORS):
        found += factor * seen[:, :, place // SIDE, place % SIDE]
    return np.unique(found)


def turned(window: np.ndarray) -> list[np.ndarray]:
    """A window in its eight positions."""
    return [np.rot90(one, turns) for one in (window, window.T) for turns in range(4)]


def share_found(part: Image.Image, known: np.ndarray) -> float:
    """The share of a picture's windows that a picture with these sums has, in any position; flat
    windows are left out."""
    asked = windows(part)[::SIDE, ::SIDE].reshape(-1, SIDE, SIDE)
    asked = asked[asked.std(axis=(1, 2)) > 4]
    if not len(asked):
        return 0.0
    numbers = [[(one.ravel() * FACTORS).sum() for one in turned(window)] for window in asked]
    return float(np.isin(numbers, known).any(axis=1).mean())


def test_a_part_of_a_picture_is_recognised() -> None:
    """So that the next test means something."""
    scene = Image.fromarray(make_scene(1).image)
    part = scene.crop((30, 41, 150, 170)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    assert share_found(part, sums(scene)) == 1
    assert share_found(part.rotate(90, expand=True), sums(scene)) == 1
    assert share_found(part, sums(Image.fromarray(make_scene(2).image))) < 0.1


def test_no_picture_both_calibrates_and_evaluates() -> None:
    pytest.importorskip("skimage")
    pictures = calibration_pictures(None)
    assert len(pictures) == len(demo_pictures()) + len(CALIBRATION_PHOTOS)
    known = np.unique(np.concatenate([sums(one) for one in pictures]))
    for picture in [*evaluation_pictures(), *evaluation_photos()]:
        assert share_found(picture, known) < 0.1
    assert share_found(pictures[0].crop((50, 50, 150, 150)), known) == 1
    assert not {*CALIBRATION_PHOTOS} & {*EVALUATION_PHOTOS}


def test_no_question_both_calibrates_and_evaluates() -> None:
    def bare(question: str) -> str:
        return "".join(letter for letter in question.lower() if letter.isalnum())

    known = {bare(one) for one in calibration_questions(None)}
    assert not known & {bare(one) for one in EVALUATION_QUESTIONS}
    assert len({bare(one) for one in EVALUATION_QUESTIONS}) == len(EVALUATION_QUESTIONS)


def test_verify_evaluates_on_those() -> None:
    pictures = evaluation_pictures()
    assert len(pictures) == 6
    assert [one.tobytes() for one in load_pictures(None, 8)] == [
        one.tobytes() for one in [*pictures, *pictures[:2]]
    ]
    assert load_questions(9) == [*EVALUATION_QUESTIONS, EVALUATION_QUESTIONS[0]]


def test_the_pictures_are_scenes_of_seeds_that_nothing_else_draws() -> None:
    """They are JPEGs, so that they are small."""
    seeds = (700_000, 700_002, 700_003, 700_008, 700_012, 700_017)
    for seed, picture in zip(seeds, evaluation_pictures(), strict=True):
        scene = make_scene(seed, held_out=True).image.astype(int)
        assert np.abs(np.asarray(picture) - scene).mean() < 4
