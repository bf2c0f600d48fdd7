"""Pictures prepared with NumPy alone, from what `ImageProcessor` says in its docstring and `steps`.

No Pillow and nothing of the library is used, so what equals this bit for bit is said completely."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

AXES = {"vertical": 0, "horizontal": 1}
A = -0.5
WEIGHT_BITS = 22


def prepare(picture: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    """[3, S, S] float32 from [H, W, 3] uint8; `about` is what `steps` gives."""
    if about["aspect"] == "pad":
        picture = pad(picture, about)
    picture = crop(resize(picture, about), about)
    pixels = (picture.astype(np.float64) * about["rescale"]).astype(np.float32)
    pixels = (pixels - np.float32(about["mean"])) / np.float32(about["std"])
    return pixels.transpose(2, 0, 1)


def pad(picture: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    height, width, _ = picture.shape
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = about["pad_colour"]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square


def resize(picture: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    assert about["resample"] == "bicubic"
    assert about["rounding"] == "uint8"
    sides = picture.shape[:2]
    for name in about["passes"]:
        axis = AXES[name]
        old, new = sides[axis], about["size"] * sides[axis] // min(sides)
        if new == old:
            continue
        table = np.array([weights(i, old, new) for i in range(new)])
        whole = np.trunc(table * 2**WEIGHT_BITS + np.copysign(0.5, table)).astype(np.int64)
        sums = np.tensordot(whole, picture.astype(np.int64), axes=(1, axis))
        rounded = (sums + 2 ** (WEIGHT_BITS - 1)) >> WEIGHT_BITS
        picture = np.moveaxis(rounded, 0, axis).clip(0, 255).astype(np.uint8)
    return picture


def weights(place: int, old: int, new: int) -> np.ndarray:
    """What each of `old` pixels in a line adds to one of the `new` ones."""
    scale = old / new
    stretch = max(scale, 1.0)
    centre, reach = (place + 0.5) * scale, 2 * stretch
    first = max(int(centre - reach + 0.5), 0)
    end = min(int(centre + reach + 0.5), old)
    found = np.zeros(old)
    for i in range(first, end):
        found[i] = bicubic((i - centre + 0.5) / stretch)
    return found / math.fsum(found)


def bicubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return ((A + 2) * x - (A + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * A if x < 2 else 0.0


def crop(picture: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    side, (height, width, _) = about["crop"], picture.shape
    # A frame as wide as the crop: it never reaches further beyond the picture.
    framed = np.empty((height + 2 * side, width + 2 * side, 3), np.uint8)
    framed[:] = about["fill"]
    framed[side : side + height, side : side + width] = picture
    top, left = side + (height - side) // 2, side + (width - side) // 2
    return framed[top : top + side, left : left + side]
