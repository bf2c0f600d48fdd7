"""The picture of an answer: which patches were kept, for which reason, and what became of the
others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from paddle_recomp.preprocess.images import Box
from paddle_recomp.types import Compressed, Stage

Colour: TypeAlias = tuple[int, int, int]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Okabe and Ito's palette, which people with any kind of colour blindness can tell apart.
VISUAL: Colour = (0, 114, 178)
TEXT: Colour = (230, 159, 0)
MERGED: tuple[Colour, ...] = ((0, 158, 115), (204, 121, 167), (240, 228, 66), (86, 180, 233))
"""One hue for each merged token, in turn."""
PAPER: Colour = (255, 255, 255)
INK: Colour = (28, 32, 38)
FAINT: Colour = (110, 118, 128)
PADDING: Colour = (208, 211, 215)
"""Where the grid reaches beyond the picture."""

WIDTH = 960
MARGIN = 32


class Cell(NamedTuple):
    """What became of one patch."""

    stage: Stage
    token: int
    """Row of `tokens` that it went into; −1 where it was dropped."""
    is_centre: bool


def stage_counts(compressed: Compressed) -> dict[str, int]:
    """Visual tokens by stage: visual, text, merged, rest (B = 1)."""
    stage = np.asarray(compressed.stage)[0]
    names = (Stage.VISUAL, Stage.TEXT, Stage.MERGED, Stage.REST)
    return {name.name.lower(): int((stage == name).sum()) for name in names}
