"""The overlay: the right colour in the right place, for a case made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from paddle_recomp.compression.registry import METHODS
from paddle_recomp.errors import ConfigError
from paddle_recomp.explain import draw_answer, draw_overlay
from paddle_recomp.explain.layout import KEPT, MERGED, PADDING, PAPER, WIDTH
from paddle_recomp.explain.page import MARGIN
from paddle_recomp.preprocess import ImageProcessor
from paddle_recomp.types import StageInfo, StageKind, VisualTokens, stage_counts

STAGES = METHODS["recoverable"].stages
VISUAL, TEXT = KEPT[:2]

BRIGHT = (240, 200, 160)
SIDE = WIDTH // 4
Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]

# 4×4 patches: 1 and 6 visual, 8 text, 10 the centre of 11 and 15, the others in the rest token.
OWNER = [4, 0, 4, 4, 4, 4, 1, 4, 2, 4, 3, 3, 4, 4, 4, 3]


def compressed(owner: list[int], stage: list[int], centre: list[int]) -> VisualTokens:
    index = [owner.index(t) if s in (0, 1) else -1 for t, s in enumerate(stage)]
    return VisualTokens(
        embeds=np.zeros((1, len(stage), 2), np.float32),
        count=np.array([len(stage) - stage.count(-1)]),
        index=np.array([index]),
        stage=np.array([stage]),
        owner=np.array([owner]),
        centre=np.array([centre]),
    )


CASE = compressed(OWNER, [0, 0, 1, 2, 3, -1], [-1, -1, -1, 10, -1, -1])


def overlay(
    case: VisualTokens = CASE,
    size: tuple[int, int] = (80, 80),
    box: Box = (0, 0, 80, 80),
    answer: str | None = "A cup.",
) -> Pixels:
    image = Image.new("RGB", size, BRIGHT)
    return np.asarray(draw_overlay(image, case, STAGES, (4, 4), box, "What is it?", answer))


def picture_top(page: Pixels) -> int:
    """The first row that is not paper at the left edge of the picture (text starts further in)."""
    column = (page[:, MARGIN : MARGIN + WIDTH] != PAPER).any(axis=2).mean(axis=1)
    return int(np.argmax(column > 0.95))


def at(page: Pixels, patch: int, x: float = 0.5, y: float = 0.75) -> tuple[int, ...]:
    """The pixel at a place inside a patch of the 4×4 grid, as fractions of its side."""
    row, column = divmod(patch, 4)
    top = picture_top(page) + int((row + y) * SIDE)
    return tuple(page[top, MARGIN + int((column + x) * SIDE)].tolist())


def has(area: Pixels, colour: tuple[int, int, int]) -> bool:
    return bool((area == colour).all(axis=2).any())


def test_stage_counts() -> None:
    assert stage_counts(STAGES, CASE) == {"visual": 2, "text": 1, "merged": 1, "rest": 1}


def test_size_and_layout() -> None:
    page = overlay()
    assert page.shape[1] == WIDTH + 2 * MARGIN
    assert page.shape[0] > WIDTH + 2 * MARGIN
    assert page.shape[0] - overlay(answer=None).shape[0] > 50


def test_kept_patches_are_bright_and_framed() -> None:
    page = overlay()
    for patch, colour in ((1, VISUAL), (6, VISUAL), (8, TEXT), (10, MERGED[0])):
        assert at(page, patch, x=0.25) == BRIGHT
        for x, y in ((0.004, 0.5), (0.994, 0.5), (0.5, 0.004), (0.5, 0.994)):
            assert at(page, patch, x, y) == colour
    assert at(page, 8, 0.05, 0.05) == TEXT
    assert at(page, 1, 0.05, 0.05) == BRIGHT
    assert at(page, 10, 0.5, 0.5) == MERGED[0]


def test_merged_patches_wear_their_centres_tint() -> None:
    page = overlay()
    tinted = np.array(at(page, 11, x=0.7))
    rest = np.array(at(page, 0))
    assert tinted[1] > tinted[0]
    assert at(page, 15, 0.3) == tuple(tinted)
    assert (rest < np.array(BRIGHT) * 0.6).all()
    assert rest[0] >= rest[1] >= rest[2]
    # The link from 15 to the centre runs through the corner between them.
    link = [at(page, 15, s, s) for s in np.linspace(0.1, 0.4, 9)]
    assert all(np.abs(np.array(pixel) - tinted).max() > 5 for pixel in link)


def test_regions_are_outlined_not_gridded() -> None:
    page = overlay()
    assert at(page, 11, 0.5, 0.0) == MERGED[0]
    assert at(page, 11, 0.3, 0.998) == at(page, 11, 0.3, 0.9)


def test_legend_shows_every_stage() -> None:
    page = overlay()
    legend = page[picture_top(page) + WIDTH :]
    for colour in (VISUAL, TEXT, MERGED[0], PADDING):
        assert has(legend, colour)
    without = overlay(compressed([0] * 16, [3], [-1]))
    bar = without[picture_top(without) + WIDTH + 60, MARGIN : MARGIN + WIDTH]
    assert not (bar == VISUAL).all(axis=1).any()


def test_outside_the_grid_is_darker() -> None:
    page = overlay(size=(160, 80), box=(40, 0, 120, 80))
    top = picture_top(page)
    outside = page[top + 100, MARGIN + 20]
    inside = page[top + 10, MARGIN + WIDTH // 4 + 20]
    assert (outside < inside * 0.6).all()


def test_padding_is_not_the_picture() -> None:
    page = overlay(size=(80, 40), box=(0, -20, 80, 60))
    top = picture_top(page)
    assert page[top + 30, MARGIN + 30].max() < PADDING[0]
    assert at(page, 6, 0.2) == BRIGHT
    assert at(page, 1, 0.2) == PADDING


def test_long_pictures_are_shown_near_the_grid() -> None:
    for size, box in (
        ((4000, 40), (1980.0, 0.0, 2020.0, 40.0)),
        ((40, 4000), (0.0, 1980.0, 40.0, 2020.0)),
    ):
        image = Image.new("RGB", size, BRIGHT)
        page = np.asarray(draw_overlay(image, CASE, STAGES, (4, 4), box, "Q"))
        assert page.shape[0] < 1500
        frames = (page == VISUAL).all(axis=2).sum()
        assert frames > 2 * 4 * 80


@pytest.mark.parametrize(
    "case",
    [
        compressed([0, 1] + [-1] * 14, [0, 1], [-1, -1]),
        compressed([-1] * 16, [-1, -1], [-1, -1]),
        compressed([0] * 16, [2], [-1]),
        compressed(list(range(16)), [0] * 16, [-1] * 16),
        compressed(list(range(16)), [2] * 16, list(range(16))),
    ],
)
def test_unusual_results(case: VisualTokens) -> None:
    assert overlay(case).shape[1] == WIDTH + 2 * MARGIN


def test_many_merged_tokens_do_not_outshine_what_was_kept() -> None:
    owner = [0, *(1 + n % 7 for n in range(15))]
    few = overlay(compressed([0, *[1] * 15], [0, 2], [-1, 1]))
    many = overlay(compressed(owner, [0, *[2] * 7], [-1, *range(1, 8)]))
    assert sum(at(many, 15, 0.8)) < sum(at(few, 15, 0.8))
    assert at(many, 0, 0.25) == BRIGHT


@pytest.mark.parametrize("text", ["long " * 120, "x" * 400, "日本語 é ü ß – “q”\n\ttwo", "?"])
def test_any_question_fits(text: str) -> None:
    image = Image.new("RGB", (40, 40), BRIGHT)
    page = np.asarray(draw_overlay(image, CASE, STAGES, (4, 4), (0, 0, 40, 40), text, text))
    margins = np.concatenate([page[:, :MARGIN], page[:, -MARGIN + 2 :]], axis=1)
    assert (margins == PAPER).all()


def test_modes_of_the_picture() -> None:
    for mode in ("L", "RGBA", "P"):
        image = Image.new(mode, (40, 40))
        assert draw_overlay(image, CASE, STAGES, (4, 4), (0, 0, 40, 40), "Q").mode == "RGB"


@pytest.mark.parametrize("size", [(2000, 1), (1, 2000), (1, 1), (10_000, 2)])
def test_the_thinnest_picture_in_a_square(size: tuple[int, int]) -> None:
    """Its short side is less than a pixel of the drawing."""
    processor = ImageProcessor(size=8, crop=8, aspect="pad")
    bright, dark = (
        np.asarray(
            draw_answer([Image.new("RGB", size, colour)], [CASE], STAGES, processor, "Q"), dtype=int
        )
        for colour in (BRIGHT, PADDING)
    )
    (rows, columns) = np.nonzero((bright != dark).any(axis=2))
    spans = np.ptp(columns) + 1, np.ptp(rows) + 1
    longer, shorter = max(spans), min(spans)
    assert (spans[0] >= spans[1]) == (size[0] >= size[1])
    assert SIDE <= longer <= WIDTH  # Frames hide some of it.
    assert shorter == longer if size == (1, 1) else shorter <= 3


@pytest.mark.parametrize(
    ("grid", "box", "says"),
    [
        ((3, 4), (0, 0, 9, 9), "grid is 3×4, but there are 16 patches"),
        ((-4, -4), (0, 0, 9, 9), "grid is -4×-4"),
        ((4, 4), (0, 0, 0, 9), "covers no part"),
        ((4, 4), (9, 0, 20, 9), "covers no part"),
        ((4, 4), (0, 0, 9, float("nan")), "covers no part"),
        ((4, 4), (0, 0, 9, float("inf")), "covers no part"),
    ],
)
def test_grid_and_box_must_match(grid: tuple[int, int], box: Box, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        draw_overlay(Image.new("RGB", (9, 9)), CASE, STAGES, grid, box, "Q")


def test_stages_must_match() -> None:
    with pytest.raises(ConfigError, match="stage 3; there are 2 stages"):
        draw_overlay(Image.new("RGB", (9, 9)), CASE, STAGES[:2], (4, 4), (0, 0, 9, 9), "Q")


@pytest.mark.parametrize("number", [1, 4, 5, 9])
def test_names_of_any_length_stay_apart_in_the_legend(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, int, int, int]] = []
    write = ImageDraw.ImageDraw.text

    def note(draw: Any, place: Any, text: str, *given: Any, **options: Any) -> None:
        font = given[1] if len(given) > 1 else options["font"]
        left, top, right, bottom = draw.textbbox(place, text, font, anchor=options.get("anchor"))
        if text:
            written.append((round(left), round(top), round(right), round(bottom)))
        write(draw, place, text, *given, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    kinds: tuple[StageKind, ...] = ("patch", "merged", "rest")
    stages = tuple(
        StageInfo(f"the rather long name of stage {i}", kinds[i % 3], "a meaning " * 9)
        for i in range(number)
    )
    case = compressed([i % number for i in range(16)], list(range(number)), [-1] * number)
    page = draw_overlay(Image.new("RGB", (80, 80)), case, stages, (4, 4), (0, 0, 80, 80), "Q")
    legend = written[2:]
    assert len(legend) >= 2 + 2 * number
    for place, (left, top, right, bottom) in enumerate(legend):
        assert 0 <= left < right <= WIDTH
        assert bottom < page.height
        for other in legend[:place]:
            beside = right <= other[0] or left >= other[2]
            assert beside or bottom <= other[1] or top >= other[3]


def test_font_must_be_readable(tmp_path: Path) -> None:
    path = tmp_path / "no.ttf"
    with pytest.raises(ConfigError, match=r"no\.ttf' cannot be read"):
        draw_overlay(Image.new("RGB", (9, 9)), CASE, STAGES, (4, 4), (0, 0, 9, 9), "Q", font=path)
