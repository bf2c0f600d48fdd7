"""The picture itself, with the fate of each patch drawn onto it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from paddle_recomp.explain.layout import (
    PADDING,
    PAPER,
    SMOOTH,
    Colour,
    Pixels,
    Provenance,
    View,
)


def draw_picture(image: Image.Image, provenance: Provenance, view: View) -> Image.Image:
    """The picture with its kept patches bright, in frames by stage, and everything else dark."""
    bright = Image.new("RGB", view.size, PADDING)
    shown = (
        max(0.0, view.bounds[0]),
        max(0.0, view.bounds[1]),
        min(image.width, view.bounds[2]),
        min(image.height, view.bounds[3]),
    )
    left, top, right, bottom = view.area(shown)
    # Of a long picture in a square, the short side may be less than a pixel of the drawing.
    size = (max(right - left, 1), max(bottom - top, 1))
    left, top = min(left, view.size[0] - size[0]), min(top, view.size[1] - size[1])
    bright.paste(image.convert("RGB").resize(size, Image.Resampling.LANCZOS, shown), (left, top))
    drawing = _dimmed(bright, 0.2)  # The model never saw the part beyond the grid.
    inside = view.area(view.box)
    drawing.paste(_dimmed(bright, 0.48).crop(inside), inside)
    _draw_members(drawing, bright, provenance, view)
    _paste_smooth(drawing, lambda draw: _draw_links(draw, provenance, view))
    draw = ImageDraw.Draw(drawing)
    width = 2 if min(view.cell_size) < 34 else 3
    for patch in provenance.patches("patch"):
        cell = view.cell(patch)
        drawing.paste(bright.crop(cell), cell)
        _frame(draw, cell, provenance.hue(patch), width)
    for centre in provenance.centres.values():
        cell = view.cell(centre)
        drawing.paste(bright.crop(cell), cell)
        _frame(draw, cell, provenance.hue(centre), width)
    _paste_smooth(drawing, lambda draw: _draw_symbols(draw, provenance, view))
    return drawing


def _draw_members(
    drawing: Image.Image, bright: Image.Image, provenance: Provenance, view: View
) -> None:
    """Tints the merged patches and outlines the region of each merged token."""
    brightness, strength = (0.5, 0.24) if provenance.crowded else (0.75, 0.4)
    pale, draw = _dimmed(bright, brightness), ImageDraw.Draw(drawing)
    columns = view.grid[1]
    owner = np.pad(np.reshape(provenance.owner, view.grid), 1, constant_values=-2)
    for patch in provenance.patches("merged"):
        left, top, right, bottom = cell = view.cell(patch)
        hue = provenance.hue(patch)
        tint = Image.new("RGB", (right - left, bottom - top), hue)
        drawing.paste(Image.blend(pale.crop(cell), tint, strength), cell)
        row, column = patch // columns + 1, patch % columns + 1
        for down, aside, line in (
            (-1, 0, (left, top, right - 1, top)),
            (1, 0, (left, bottom - 1, right - 1, bottom - 1)),
            (0, -1, (left, top, left, bottom - 1)),
            (0, 1, (right - 1, top, right - 1, bottom - 1)),
        ):
            if owner[row + down, column + aside] != owner[row, column]:
                draw.line(line, fill=hue)


def _draw_links(draw: ImageDraw.ImageDraw, provenance: Provenance, view: View) -> None:
    """A line from each merged patch to the centre of its token, enlarged by SMOOTH."""
    opacity = 80 if provenance.crowded else 170
    for patch in provenance.patches("merged"):
        centre = provenance.centres.get(provenance.owner[patch], patch)
        ends = [(x * SMOOTH, y * SMOOTH) for x, y in map(view.middle, (patch, centre))]
        draw.line(ends, fill=(*provenance.hue(patch), opacity), width=SMOOTH)


def _draw_symbols(draw: ImageDraw.ImageDraw, provenance: Provenance, view: View) -> None:
    """Draws the symbols that tell the stages apart without colour, enlarged by SMOOTH: a dot for a
    centre, a corner for a patch that another stage than the first one kept."""
    for patch in provenance.patches("patch"):
        if provenance.stage[provenance.owner[patch]] > 0:
            left, top, right, _ = (edge * SMOOTH for edge in view.cell(patch))
            draw_corner(draw, left, top, (right - left) * 0.3, provenance.hue(patch))
    for centre in provenance.centres.values():
        x, y = view.middle(centre)
        radius = max(2.5, view.cell_size[0] * 0.14)
        draw_dot(draw, x * SMOOTH, y * SMOOTH, radius * SMOOTH, provenance.hue(centre))


def draw_dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: Colour) -> None:
    """A disc with a white rim."""
    for size, fill in ((radius * 1.45, PAPER), (radius, colour)):
        draw.ellipse((x - size, y - size, x + size, y + size), fill=fill)


def draw_corner(
    draw: ImageDraw.ImageDraw, left: float, top: float, leg: float, colour: Colour
) -> None:
    """A filled triangle in the corner of a patch."""
    draw.polygon([(left, top), (left + leg, top), (left, top + leg)], fill=colour)


def _paste_smooth(drawing: Image.Image, paint: Callable[[ImageDraw.ImageDraw], None]) -> None:
    """Pastes the drawing of `paint`, made on a sheet SMOOTH times as large."""
    sheet = Image.new("RGBA", (drawing.width * SMOOTH, drawing.height * SMOOTH))
    paint(ImageDraw.Draw(sheet))
    sheet = sheet.resize(drawing.size, Image.Resampling.BOX)
    drawing.paste(sheet, mask=sheet)


def _dimmed(image: Image.Image, brightness: float) -> Image.Image:
    grey = ImageEnhance.Color(image).enhance(0.25)
    return ImageEnhance.Brightness(grey).enhance(brightness)


def _frame(draw: ImageDraw.ImageDraw, cell: Pixels, colour: Colour, width: int) -> None:
    left, top, right, bottom = cell
    draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)
