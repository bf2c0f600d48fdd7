"""From a file to a picture: upright, RGB, of 8 bits."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from paddle_recomp.errors import ImageError, ImageNotFoundError

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""The formats that are decoded. The list is closed, because some of Pillow's formats (EPS) start
programs."""

MAX_PIXELS = 50_000_000
"""The largest picture that is decoded by default."""

_LARGEST_PIPE = 256_000_000
"""Bytes of a picture that comes through a pipe."""

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")

# Pillow decodes a picture when its pixels are first used. Two threads that share a picture would
# both decode into the same pixels at once.
_decoding = threading.Lock()


def load_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as upright RGB, from a path, from the bytes of a file, or from a Pillow image.

    Its size is checked in the header, before anything is decoded. EXIF orientation is applied;
    transparency is dropped, not blended, as CLIP's own pipeline does; 16-bit and float greys
    are scaled to 8 bits; of an animation the first frame is read.

    Raises: ImageNotFoundError when there is no such file; ImageError when it is a folder, not a
    picture, damaged, empty, larger than `max_pixels`, or of another type."""
    if isinstance(source, Image.Image):
        with _decoding:
            _decode(source, "the picture", max_pixels)
        return _to_rgb(source)
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), "the picture", max_pixels)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(
            f"a picture is of type {type(source).__name__}; expected a path, the bytes of a file, "
            "or a Pillow image"
        )
    name = repr(os.fspath(source))
    with _open_file(source) as file:
        return _read(file if file.seekable() else _whole(file, name), name, max_pixels)


def load_images(sources: Sequence[ImageSource]) -> list[Image.Image]:
    """`load_image` of each; a path that comes twice is read once, and gives the same object."""
    loaded: dict[object, Image.Image] = {}
    keys = [one if isinstance(one, str | os.PathLike) else id(one) for one in sources]
    for key, source in zip(keys, sources, strict=True):
        if key not in loaded:
            loaded[key] = load_image(source)
    return [loaded[key] for key in keys]


def _open_file(path: str | os.PathLike[str]) -> BinaryIO:
    name = repr(os.fspath(path))
    try:
        return open(path, "rb")
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder, not a picture") from None
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the path.
        raise ImageNotFoundError(f"there is no picture at {name}") from None
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror or error}") from error


def _whole(file: BinaryIO, name: str) -> BinaryIO:
    """What a pipe has to say, which can be read only once."""
    content = file.read(_LARGEST_PIPE + 1)
    if len(content) > _LARGEST_PIPE:
        raise ImageError(f"{name} has more than {_LARGEST_PIPE} bytes")
    return io.BytesIO(content)


def _read(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    image = _read_header(file, name)
    _decode(image, name, max_pixels)
    return _to_rgb(image)


def _decode(image: Image.Image, name: str, max_pixels: int) -> None:
    _check_size(image.size, name, max_pixels)
    try:
        image.load()
    except Exception as error:  # Decoders raise any exception of their parsers.
        raise ImageError(f"{name} is damaged and cannot be decoded: {error}") from error


def _read_header(file: BinaryIO, name: str) -> Image.Image:
    """A picture whose size is known and whose pixels are not decoded yet. `Image.open` would do the
    same, but it warns or fails by a global limit of its own, before the size can be reported."""
    Image.init()
    prefix = file.read(16)
    if not prefix:
        raise ImageError(f"{name} is an empty file")
    for kind in FORMATS:
        if kind not in Image.OPEN:
            continue
        factory, accepts = Image.OPEN[kind]
        # For a format that this build of Pillow lacks, the result is a sentence instead of True.
        if accepts is not None and accepts(prefix.ljust(16, b"\0")) is not True:
            continue
        file.seek(0)
        try:
            return factory(file, "")
        except Exception as error:
            raise ImageError(f"{name} is a damaged {kind} file: {error}") from error
    raise ImageError(f"{name} is not a picture in a known format ({', '.join(FORMATS)})")


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty: {width}×{height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width}×{height} pixels; the limit is {max_pixels / 1e6:g} megapixels"
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
    """Grey values [H, W] of a deep picture; Pillow's own conversion clips them to white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    # Files of 16 bits are met as mode "I", too.
    sixteen = image.mode == "I" and low >= 0 and 255 < high < 65536
    if image.mode in _SIXTEEN_BIT_MODES or sixteen:
        values = values / 257
    elif image.mode == "F" and low >= 0 and high <= 1:
        values = values * 255
    elif low < high and (low < 0 or high > 255):
        values = (values - low) / (high - low) * 255
    grey: npt.NDArray[np.uint8] = np.rint(values.clip(0, 255)).astype(np.uint8)
    return grey
