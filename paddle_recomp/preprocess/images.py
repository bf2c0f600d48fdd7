"""From a file to a picture: upright, RGB, of 8 bits."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from paddle_recomp.errors import ImageError, ImageNotFoundError
from paddle_recomp.files import is_folder, read_file
from paddle_recomp.limits import limits, the_limit, variable
from paddle_recomp.preprocess.picture_files import decode, decode_file, open_picture

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image

_BAND = 64
"""Rows that are scaled at once."""
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")

# Pillow decodes a picture when its pixels are first used. Two threads that share a picture would
# both decode into the same pixels at once.
_decoding = threading.Lock()


def load_image(source: ImageSource, max_pixels: int | None = None) -> Image.Image:
    """A picture as upright RGB, from a path, from the bytes of a file, or from a Pillow image.

    Its size is checked in the header, before anything is decoded; without `max_pixels` the bound is
    that of `limits`, as are the others on a picture's file. EXIF orientation is applied;
    transparency is dropped, not blended, as CLIP's own pipeline does; 16-bit and float greys
    are scaled to 8 bits; of an animation the first frame is read.

    Raises: ImageNotFoundError when there is no such file; ImageError when it is a folder, not a
    picture, damaged, empty, larger than `max_pixels`, or of another type."""
    if isinstance(source, Image.Image):
        with _decoding:
            _check_size(source.size, "the picture", max_pixels)
            decode(source, "the picture")
        return _to_rgb(source)
    if isinstance(source, bytes):
        if len(source) > limits().picture_bytes:
            raise ImageError(
                f"the picture's file has {len(source)} bytes; {the_limit('picture_bytes')}"
            )
        return _read(source, "the picture", max_pixels)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            f"a picture is of type {type(source).__name__}; expected a path, the bytes of a file, "
            "or a Pillow image"
        )
    name = repr(os.fspath(source))
    return _read(_content(source, name), name, max_pixels)


def load_images(sources: Sequence[ImageSource]) -> list[Image.Image]:
    """`load_image` of each; a path that comes twice is read once, and gives the same object."""
    loaded: dict[object, Image.Image] = {}
    keys = [one if isinstance(one, str | os.PathLike) else id(one) for one in sources]
    for key, source in zip(keys, sources, strict=True):
        if key not in loaded:
            loaded[key] = load_image(source)
    return [loaded[key] for key in keys]


def _content(path: str | os.PathLike[str], name: str) -> bytes:
    if is_folder(path):
        raise ImageError(f"{name} is a folder, not a picture")
    try:
        return read_file(path, ImageError, ImageNotFoundError, "picture_bytes", pipe=True)
    except ImageNotFoundError:
        raise ImageNotFoundError(f"there is no picture at {name}") from None


def _read(content: bytes, name: str, max_pixels: int | None) -> Image.Image:
    image = open_picture(content, name)
    _check_size(image.size, name, max_pixels)
    return _to_rgb(decode_file(content, image, name))


def _check_size(size: tuple[int, int], name: str, max_pixels: int | None) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty: {width}×{height} pixels")
    if max(width, height) > limits().picture_side:
        raise ImageError(f"{name} has {width}×{height} pixels; {the_limit('picture_side')} a side")
    most = limits().picture_pixels if max_pixels is None else max_pixels
    if width * height > most:
        way = f" ({variable('picture_pixels')})" if max_pixels is None else ""
        raise ImageError(
            f"{name} has {width}×{height} pixels; the limit is {most / 1e6:g} megapixels{way}"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # A broken EXIF block says nothing about the pixels.
        image = image.copy()
    if image.mode == "RGB":
        return image
    if image.mode in (*_SIXTEEN_BIT_MODES, "I", "F"):
        return Image.fromarray(_to_8_bits(image)).convert("RGB")
    # Otherwise Pillow warns that it cannot keep the transparency of a palette.
    image.info.pop("transparency", None)
    if image.mode == "La":  # The only mode that Pillow converts into a single other one.
        image = image.convert("LA")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Grey values [H, W] of a deep picture; Pillow's own conversion clips them to white. It goes
    band by band, as float64 takes eight times the memory of the result."""
    bands = [
        (0, top, image.width, min(top + _BAND, image.height))
        for top in range(0, image.height, _BAND)
    ]
    ends = [(float(band.min()), float(band.max())) for band in map(partial(_band, image), bands)]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    # Files of 16 bits are met as mode "I", too.
    sixteen = image.mode == "I" and low >= 0 and 255 < high < 65536
    grey = np.empty((image.height, image.width), np.uint8)
    for box in bands:
        values = _band(image, box)
        if image.mode in _SIXTEEN_BIT_MODES or sixteen:
            values = values / 257
        elif image.mode == "F" and low >= 0 and high <= 1:
            values = values * 255
        elif low < high and (low < 0 or high > 255):
            values = (values - low) / (high - low) * 255
        grey[box[1] : box[3]] = np.rint(values.clip(0, 255))
    return grey


def _band(image: Image.Image, box: tuple[int, int, int, int]) -> npt.NDArray[np.float64]:
    """The values of some rows, of which those that are no number are zero."""
    values = np.asarray(image.crop(box), dtype=np.float64)
    return np.nan_to_num(values, posinf=0, neginf=0)
