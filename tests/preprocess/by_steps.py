"""Pictures prepared from the fields of a processor and its `steps`, with NumPy alone.

Nothing of Pillow and nothing of the library is used: what equals this bit for bit is described
completely by that data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

AXES = {"vertical": 0, "horizontal": 1}


def prepare(picture: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    """[3, S, S] float32 from [H, W, 3] uint8; `about` has the fields and the steps."""
    steps = {"pad": pad, "resize": resize, "crop": crop, "rescale": rescale, "normalise": normalise}
    for name in about["order"]:
        picture = steps[name](picture, about)
    return picture.transpose(2, 0, 1)


def pad(picture: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    assert about["offset"] == "floor of half the difference"
    height, width, _ = picture.shape
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = about["pad_colour"]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square


def resize(picture: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    assert about["resample"] == "bicubic"
    assert about["longer_side"] == "truncated"
    assert about["round"] == "half up to uint8 after each pass"
    sides = picture.shape[:2]
    bits = about["weight_bits"]
    for name in about["passes"]:
        axis = AXES[name]
        old, new = sides[axis], about["size"] * sides[axis] // min(sides)
        if new == old:
            continue
        table = np.array([weights(i, old, new, about) for i in range(new)])
        whole = np.trunc(table * 2**bits + np.copysign(0.5, table)).astype(np.int64)
        sums = np.tensordot(whole, picture.astype(np.int64), axes=(1, axis))
        rounded = (sums + 2 ** (bits - 1)) >> bits
        picture = np.moveaxis(rounded, 0, axis).clip(0, 255).astype(np.uint8)
    return picture


def weights(place: int, old: int, new: int, about: Mapping[str, Any]) -> np.ndarray:
    """What each of `old` pixels in a line adds to one of the `new` ones."""
    scale = old / new
    stretch = max(scale, 1.0) if about["antialias"] else 1.0
    centre, reach = (place + 0.5) * scale, 2 * stretch
    first = max(int(centre - reach + 0.5), 0)
    end = min(int(centre + reach + 0.5), old)
    found = np.zeros(old)
    for i in range(first, end):
        found[i] = bicubic((i - centre + 0.5) / stretch, about["bicubic_a"])
    return found / math.fsum(found)


def bicubic(x: float, a: float) -> float:
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def crop(picture: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    assert about["offset"] == "floor of half the difference"
    side = about["crop"]
    seen = np.full((side, side, 3), about["beyond_picture"], np.uint8)
    starts = [(length - side) // 2 for length in picture.shape[:2]]
    target = tuple(slice(max(-start, 0), None) for start in starts)
    part = picture[tuple(slice(max(start, 0), max(start, 0) + side) for start in starts)]
    area = seen[target][: part.shape[0], : part.shape[1]]
    area[:] = part[: area.shape[0], : area.shape[1]]
    return seen


def rescale(picture: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    return (picture.astype(np.float64) * about["rescale"]).astype(np.float32)


def normalise(picture: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    return (picture - np.float32(about["mean"])) / np.float32(about["std"])
