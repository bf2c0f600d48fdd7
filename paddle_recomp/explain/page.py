"""The page around the picture: question and answer above, legend below."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Sequence
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

from paddle_recomp.errors import ConfigError
from paddle_recomp.explain.layout import (
    FAINT,
    INK,
    PADDING,
    PAPER,
    REST,
    SMOOTH,
    WIDTH,
    Colour,
    Provenance,
    View,
    stage_hues,
)
from paddle_recomp.explain.picture import draw_corner, draw_dot, draw_picture
from paddle_recomp.preprocess import Box
from paddle_recomp.types import StageInfo, VisualTokens, stage_counts

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

MARGIN, GAP = 32, 20
_MOST_IN_ROW = 4
"""Stages beside each other in the legend."""

_ASCII = {"–": "-", "—": "-", "−": "-", "×": "x", "ß": "ss", "‘": "'", "’": "'", "„": '"'}


def draw_overlay(
    image: Image.Image,
    compressed: VisualTokens,
    stages: Sequence[StageInfo],
    grid: tuple[int, int],
    box: Box,
    question: str,
    answer: str | None = None,
    font: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """The picture with the fate of each patch, a legend, the question and the answer.

    `compressed` holds arrays with B = 1, `stages` are those of the method that made it, `grid` is
    (rows, columns) with rows · columns = N, and `box` is the part of the picture that the grid
    covers (`preprocess.crop_box`). Kept patches are bright, with a frame in the colour of their
    stage. Merged patches have the tint of their centre and a line to it. Everything else is dark.
    `font` is a TrueType file for the question and the answer; Pillow's built-in one has unaccented
    Latin letters only, and a letter that it lacks is shown without its accent, or as a question
    mark.

    Raises: ConfigError when the grid does not match the patches, the box lies beside the picture,
    a token has none of the stages, or the font cannot be read."""
    provenance = Provenance(compressed, tuple(stages))
    if max(provenance.stage, default=-1) >= len(stages):
        raise ConfigError(
            f"a token has stage {max(provenance.stage)}; there are {len(stages)} stages"
        )
    left, top, right, bottom = box
    if not (left < min(right, image.width) and top < min(bottom, image.height)) or not (
        max(right, bottom) < math.inf and min(right, bottom) > 0 and min(left, top) > -math.inf
    ):
        raise ConfigError(
            f"the box {box} covers no part of a picture of {image.width}×{image.height} pixels"
        )
    if min(grid) < 1 or grid[0] * grid[1] != len(provenance.owner):
        raise ConfigError(
            f"the grid is {grid[0]}×{grid[1]}, but there are {len(provenance.owner)} patches"
        )
    view = View(image.size, grid, box)
    typeface = _load_font(font)
    blocks = [_text_block("Question", question, typeface)]
    if answer:
        blocks.append(_text_block("Answer", answer, typeface))
    blocks += [draw_picture(image, provenance, view), _legend(provenance)]
    height = sum(block.height for block in blocks) + GAP * (len(blocks) - 1) + 2 * MARGIN
    page = Image.new("RGB", (WIDTH + 2 * MARGIN, height), PAPER)
    top = MARGIN
    for block in blocks:
        page.paste(block, (MARGIN + (WIDTH - block.width) // 2, top))
        top += block.height + GAP
    return page


def beside(pages: Sequence[Image.Image]) -> Image.Image:
    """Pages, at least one, from left to right on one sheet."""
    if len(pages) == 1:
        return pages[0]
    size = (sum(page.width for page in pages), max(page.height for page in pages))
    sheet, left = Image.new("RGB", size, PAPER), 0
    for page in pages:
        sheet.paste(page, (left, 0))
        left += page.width
    return sheet


def _load_font(path: str | os.PathLike[str] | None) -> Font:
    if path is None:
        return ImageFont.load_default(28)
    try:
        return ImageFont.truetype(os.fspath(path), 28)
    except (OSError, ValueError) as error:
        raise ConfigError(f"font {os.fspath(path)!r} cannot be read: {error}") from error


def _text_block(label: str, text: str, font: Font) -> Image.Image:
    """A faint label above a paragraph."""
    lines = _wrap(_printable(text, font), font, WIDTH)
    block = Image.new("RGB", (WIDTH, 26 + 36 * len(lines)), PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((0, 0), label, FAINT, ImageFont.load_default(16))
    for number, line in enumerate(lines):
        draw.text((0, 24 + 36 * number), line, INK, font, stroke_width=0.35)
    return block


def _printable(text: str, font: Font) -> str:
    """The text in letters that the font has: a missing one is shown without its accent, or else
    as a question mark."""
    missing = bytes(font.getmask("\uffff"))

    def has(letter: str) -> bool:
        return letter.isspace() or bytes(font.getmask(letter)) != missing

    shown = []
    for letter in unicodedata.normalize("NFC", text):
        plain = unicodedata.normalize("NFKD", _ASCII.get(letter, letter))
        plain = "".join(part for part in plain if not unicodedata.combining(part))
        shown.append(letter if has(letter) else plain if plain and all(map(has, plain)) else "?")
    return "".join(shown)


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Lines no wider than `width`; a word that is wider by itself is broken."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _legend(provenance: Provenance) -> Image.Image:
    stages = provenance.stages
    counts = stage_counts(stages, provenance.compressed)
    patches, tokens = len(provenance.owner), sum(counts.values())
    dropped = provenance.owner.count(-1)
    parts = " · ".join(f"{name} {count}" for name, count in counts.items())
    note = f" · {dropped} dropped" if dropped else ""
    total = f"{tokens} visual tokens instead of {patches} ({tokens / patches:.0%}){note}"
    large, small = ImageFont.load_default(22), ImageFont.load_default(17)
    lines = _wrap(_printable(f"{parts} of {patches}", large), large, WIDTH)
    if large.getlength(lines[-1]) + GAP + small.getlength(total) > WIDTH:
        lines.append("")  # The total gets a line of its own.
    bar = 28 * len(lines) + 10
    in_row = min(len(stages), _MOST_IN_ROW)
    column_width = WIDTH // in_row
    block = Image.new("RGB", (WIDTH, bar + 26 + 48 * -(-len(stages) // in_row)), PAPER)
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        draw.text((0, 28 * number), line, INK, large, stroke_width=0.3)
    draw.text((WIDTH, bar - 34), total, FAINT, small, anchor="ra")
    shares = [(counts[one.name], stage_hues(stages, i)[0]) for i, one in enumerate(stages)]
    _bar(draw, bar, shares, patches)
    for number, stage in enumerate(stages):
        row, column = divmod(number, in_row)
        left, top = column * WIDTH // in_row, bar + 30 + 48 * row
        block.paste(_chip(stages, number), (left, top + 2))
        count = f" {counts[stage.name]}"
        meaning = _meaning(stage, counts[stage.name], len(provenance.patches_of(number)))
        room = column_width - 42 - GAP // 2
        _line(draw, (left + 42, top), stage.name, INK, 18, room, count)
        _line(draw, (left + 42, top + 24), meaning, FAINT, 14, room)
    return block


def _line(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    colour: Colour,
    size: int,
    room: int,
    end: str = "",
) -> None:
    """Draws text on one line, with the end behind it, both within so many pixels."""
    font = ImageFont.load_default(size)
    text = _printable(" ".join(text.split()), font)
    shown = text
    while text and font.getlength(shown + end) > room:
        text = text[:-1]
        shown = f"{text.rstrip()}..."
    draw.text(place, shown + end, colour, font)


def _meaning(stage: StageInfo, tokens: int, patches: int) -> str:
    """The legend's text for a stage with so many tokens, into which so many patches went."""
    if stage.kind == "merged":
        return f"stand for {patches} similar patches" if tokens else "nothing merged"
    if stage.kind == "rest":
        return f"sums up the other {patches}" if tokens else "no rest token"
    return stage.meaning


def _bar(
    draw: ImageDraw.ImageDraw, top: int, parts: Sequence[tuple[int, Colour]], whole: int
) -> None:
    """Draws shares of `whole` from left to right; the remainder stays pale."""
    draw.rectangle((0, top, WIDTH - 1, top + 11), fill=(228, 231, 235))
    done = 0
    for count, colour in parts:
        start, done = done, done + count
        if count:
            edges = (start * WIDTH // whole, done * WIDTH // whole - 1)
            draw.rectangle((edges[0], top, max(edges), top + 11), fill=colour)


def _chip(stages: Sequence[StageInfo], number: int) -> Image.Image:
    """Draws a sample of a stage's patches."""
    size, kind, hues = 32 * SMOOTH, stages[number].kind, stage_hues(stages, number)
    chip = Image.new("RGB", (size, size), (214, 205, 190) if kind == "patch" else REST)
    draw = ImageDraw.Draw(chip)
    if kind == "rest":
        chip.paste(PADDING, (0, 0, size, size))
    elif kind == "merged":
        for place, hue in enumerate(hues):
            edges = (place * size // len(hues), 0, (place + 1) * size // len(hues), size)
            draw.rectangle(edges, fill=hue)
        draw_dot(draw, size / 2, size / 2, size * 0.16, hues[0])
    else:
        draw.rectangle((0, 0, size - 1, size - 1), outline=hues[0], width=4 * SMOOTH)
    if kind == "patch" and number > 0:
        draw_corner(draw, 0, 0, size * 0.45, hues[0])
    return chip.resize((32, 32), Image.Resampling.BOX)
