"""The fate of each patch, and the place of everything on the drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from paddle_recomp.preprocess import Box
from paddle_recomp.types import StageInfo, VisualTokens

Colour: TypeAlias = tuple[int, int, int]
Pixels: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, bottom on the drawing."""

# From Okabe and Ito's palette, whose colours people with any colour vision can tell apart.
KEPT: tuple[Colour, ...] = ((0, 114, 178), (230, 159, 0), (213, 94, 0), (240, 228, 66))
"""One colour for each stage that keeps patches as they are, in turn."""
MERGED: tuple[Colour, ...] = ((0, 158, 115), (204, 121, 167), (86, 180, 233))
"""One hue for each merged token, in turn."""
REST: Colour = (122, 128, 136)
PAPER: Colour = (255, 255, 255)
INK: Colour = (27, 31, 38)
FAINT: Colour = (104, 112, 122)
PADDING: Colour = (70, 74, 80)
"""The colour where the grid reaches beyond the picture."""

WIDTH = 960
"""Pixels of the drawing's content from left to right."""
SMOOTH = 3
"""Slanted lines and dots are drawn so many times larger and then shrunk, because Pillow draws
jagged ones."""

_TALLEST = 1100


def stage_hues(stages: Sequence[StageInfo], number: int) -> Sequence[Colour]:
    """The colours of a stage by its number: one, or those of the merged tokens in turn."""
    if stages[number].kind == "merged":
        return MERGED
    if stages[number].kind == "rest":
        return (REST,)
    place = sum(stage.kind == "patch" for stage in stages[:number])
    return (KEPT[place % len(KEPT)],)


@dataclass(frozen=True)
class Provenance:
    """The fate of each patch, from a `VisualTokens` with B = 1 of a method with these stages."""

    compressed: VisualTokens
    stages: tuple[StageInfo, ...]

    @cached_property
    def stage(self) -> list[int]:
        """[M] the stage of each token."""
        return [int(stage) for stage in np.asarray(self.compressed.stage)[0]]

    @cached_property
    def owner(self) -> list[int]:
        """[N] the token of each patch, −1 for none."""
        return [int(token) for token in np.asarray(self.compressed.owner)[0]]

    @cached_property
    def merged(self) -> list[int]:
        """The tokens that are merged, ascending."""
        return [token for token in range(len(self.stage)) if self.kind(token) == "merged"]

    @cached_property
    def centres(self) -> dict[int, int]:
        """The centre patch of each merged token that has one, by token."""
        centre = [int(patch) for patch in np.asarray(self.compressed.centre)[0]]
        return {token: centre[token] for token in self.merged if centre[token] >= 0}

    @property
    def crowded(self) -> bool:
        """Whether there are so many merged tokens that they would outshine the kept ones."""
        return len(self.merged) > 6

    def kind(self, token: int) -> str:
        """The kind of a token's stage; empty for padding."""
        return self.stages[self.stage[token]].kind if self.stage[token] >= 0 else ""

    def patches(self, kind: str) -> list[int]:
        """The patches that went into tokens of a kind, ascending."""
        return [p for p, t in enumerate(self.owner) if t >= 0 and self.kind(t) == kind]

    def patches_of(self, stage: int) -> list[int]:
        """The patches that went into tokens of a stage, by its number, ascending."""
        return [p for p, t in enumerate(self.owner) if t >= 0 and self.stage[t] == stage]

    def hue(self, patch: int) -> Colour:
        """The colour of the token that a kept or merged patch went into."""
        token = self.owner[patch]
        if self.kind(token) == "merged":
            return MERGED[self.merged.index(token) % len(MERGED)]
        return stage_hues(self.stages, self.stage[token])[0]


@dataclass(frozen=True)
class View:
    """Where the picture and the grid of patches lie on the drawing."""

    image_size: tuple[int, int]
    grid: tuple[int, int]
    box: Box

    @cached_property
    def bounds(self) -> Box:
        """The shown part, in pixels of the picture: the whole grid and the picture around it; of a
        long picture only the part near the grid."""
        left, top, right, bottom = self.box
        width, height = self.image_size
        near_x, near_y = 0.75 * (right - left), 0.75 * (bottom - top)
        return (
            min(left, max(0.0, left - near_x)),
            min(top, max(0.0, top - near_y)),
            max(right, min(width, right + near_x)),
            max(bottom, min(height, bottom + near_y)),
        )

    @cached_property
    def scale(self) -> float:
        """Pixels of the drawing for each pixel of the picture."""
        left, top, right, bottom = self.bounds
        return min(WIDTH / (right - left), _TALLEST / (bottom - top))

    def place(self, x: float, y: float) -> tuple[int, int]:
        """A point of the picture on the drawing."""
        return (
            round((x - self.bounds[0]) * self.scale),
            round((y - self.bounds[1]) * self.scale),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the drawing."""
        return self.place(*self.bounds[2:])

    def area(self, box: Box) -> Pixels:
        """A part of the picture on the drawing."""
        return *self.place(*box[:2]), *self.place(*box[2:])

    @property
    def cell_size(self) -> tuple[float, float]:
        """Width and height of a patch on the drawing."""
        (rows, columns), (left, top, right, bottom) = self.grid, self.box
        return (right - left) / columns * self.scale, (bottom - top) / rows * self.scale

    def cell(self, patch: int) -> Pixels:
        """The square of a patch on the drawing; neighbours share an edge."""
        (rows, columns), (left, top, right, bottom) = self.grid, self.box
        row, column = divmod(patch, columns)
        width, height = (right - left) / columns, (bottom - top) / rows
        x, y = left + column * width, top + row * height
        return self.area((x, y, x + width, y + height))

    def middle(self, patch: int) -> tuple[float, float]:
        """The centre of a patch on the drawing."""
        left, top, right, bottom = self.cell(patch)
        return (left + right) / 2, (top + bottom) / 2
