"""The page around the picture: question and answer above, legend below."""

from __future__ import annotations

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

    Raises: ConfigError when the grid does not match the patches, or the font cannot be read."""
    provenance = Provenance(compressed, tuple(stages))
    if grid[0] * grid[1] != len(provenance.owner):
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
    block = Image.new("RGB", (WIDTH, 112), PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((0, 0), f"{parts} of {patches}", INK, ImageFont.load_default(22), stroke_width=0.3)
    total = f"{tokens} visual tokens instead of {patches} ({tokens / patches:.0%}){note}"
    draw.text((WIDTH, 4), total, FAINT, ImageFont.load_default(17), anchor="ra")
    shares = [(counts[one.name], stage_hues(stages, i)[0]) for i, one in enumerate(stages)]
    _bar(draw, 38, shares, patches)
    for column, stage in enumerate(stages):
        left = column * WIDTH // len(stages)
        block.paste(_chip(stages, column), (left, 70))
        count = f"{stage.name} {counts[stage.name]}"
        draw.text((left + 42, 68), count, INK, ImageFont.load_default(18))
        meaning = _meaning(stage, counts[stage.name], len(provenance.patches_of(column)))
        draw.text((left + 42, 92), meaning, FAINT, ImageFont.load_default(14))
    return block


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
