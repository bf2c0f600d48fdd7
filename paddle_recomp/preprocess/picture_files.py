"""From the bytes of a picture's file to a Pillow image that is not decoded yet, within bounds.

Pillow's readers believe a file: they go over any number of markers, chunks, comments and scans.
Here that is counted before they begin and while they read."""

from __future__ import annotations

import ctypes
import io
import math
import struct
from functools import cache

import numpy as np
from PIL import Image

from paddle_recomp.errors import ImageError
from paddle_recomp.json_files import one_line
from paddle_recomp.limits import limits, the_limit
from paddle_recomp.preprocess import jpeg2000

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""The formats that are decoded. The list is closed, because some of Pillow's formats (EPS) start
programs."""

_WHOLE = ("WEBP", "AVIF", "TIFF")
"""Formats whose reader takes the whole file, or any part of it, before the size is known."""
_PLAIN = (b"P1", b"P2", b"P3")
"""PPM with numbers written as text, which Pillow reads in Python."""
_REPEATED = {"JPEG": b"Exif\0\0", "PNG": b"iCCP"}
"""What takes long where a file has many: Exif blocks are joined, colour profiles inflated."""
_STRIP_TAGS = (273, 279, 324, 325)
"""Places and sizes of a TIFF's strips and tiles."""


def open_picture(content: bytes, name: str) -> Image.Image:
    """A picture whose size is known and whose pixels are not decoded yet. `Image.open` would do the
    same, but it warns or fails by a global limit of its own, before the size can be reported.

    Raises: ImageError for a file of another format, a damaged one, or one beyond the bounds."""
    Image.init()
    kind = _kind(content, name)
    _check_content(kind, content, name)
    header = len(content) * 2 if kind in _WHOLE else limits().picture_header
    file = _Counted(content, limits().picture_reads, header)
    try:
        image: Image.Image = Image.OPEN[kind][0](file, "")
    except _LimitError as error:
        raise ImageError(f"{name} {error}") from None
    except Exception as error:  # Readers raise any exception of their parsers.
        raise ImageError(f"{name} is a damaged {kind} file: {one_line(error, 200)}") from error
    file.allow_all()
    return image


def decode(image: Image.Image, name: str) -> None:
    """Brings the pixels of a picture into memory. Raises: ImageError."""
    _quiet_libtiff()
    try:
        image.load()
    except _LimitError as error:
        raise ImageError(f"{name} {error}") from None
    except Exception as error:  # Decoders raise any exception of their parsers.
        raise ImageError(
            f"{name} is damaged and cannot be decoded: {one_line(error, 200)}"
        ) from error


def decode_file(content: bytes, image: Image.Image, name: str) -> Image.Image:
    """The picture that `open_picture` has opened, with its pixels in memory. Raises: ImageError."""
    # Among the pixels of a JPEG these two bytes stand in front of a scan and nowhere else.
    scans = content.count(b"\xff\xda") if content.startswith(b"\xff\xd8") else 0
    if image.width * image.height * scans > limits().picture_scans:
        raise ImageError(
            f"{name} has {image.width}×{image.height} pixels and goes over them {scans} times; "
            f"{the_limit('picture_scans')}"
        )
    tiles = getattr(image, "tile", ())
    if tiles and tiles[0][0] == "ppm":
        return _decode_ppm(content, image, tiles[0][2], tiles[0][3][1], name)
    decode(image, name)
    return image


def _decode_ppm(
    content: bytes, image: Image.Image, start: int, most: int, name: str
) -> Image.Image:
    """A binary PPM whose numbers go to `most`, which Pillow decodes pixel by pixel in Python."""
    stored, bands = np.dtype("u1" if most < 256 else ">u2"), len(image.getbands())
    shape = (image.height, image.width, bands)[: 2 if bands == 1 else 3]
    largest = 65535 if image.mode == "I" else 255
    try:
        values = np.frombuffer(content, stored, math.prod(shape), start).reshape(shape)
    except ValueError as error:
        raise ImageError(f"{name} is damaged and cannot be decoded: {error}") from None
    scaled = np.rint(np.arange(most + 1) / most * largest)
    table = scaled.astype(np.int32 if image.mode == "I" else np.uint8)
    return Image.fromarray(table[np.minimum(values, most)])


class _LimitError(Exception):
    """What the reader of a picture asked for."""


class _Counted(io.BytesIO):
    """A file that counts how often and how much of it is read."""

    def __init__(self, content: bytes, reads: int, size: int) -> None:
        super().__init__(content)
        self._reads, self._bytes = reads, float(size)

    def allow_all(self) -> None:
        """From now on only the number of reads is bounded."""
        self._bytes = float("inf")

    def read(self, size: int | None = -1, /) -> bytes:
        """As `io.BytesIO.read`. Raises: _LimitError."""
        self._reads -= 1
        if self._reads < 0:
            raise _LimitError(f"is read in more pieces; {the_limit('picture_reads')}")
        found = super().read(size)
        self._bytes -= len(found)
        if self._bytes < 0:
            raise _LimitError(f"has more in front of its pixels; {the_limit('picture_header')}")
        return found


def _kind(content: bytes, name: str) -> str:
    prefix = content[:16]
    if not prefix:
        raise ImageError(f"{name} is an empty file")
    for kind in FORMATS:
        if kind not in Image.OPEN:
            continue
        accepts = Image.OPEN[kind][1]
        # For a format that this build of Pillow lacks, the result is a sentence instead of True.
        if accepts is None or accepts(prefix.ljust(16, b"\0")) is True:
            return kind
    raise ImageError(f"{name} is not a picture in a known format ({', '.join(FORMATS)})")


def _check_content(kind: str, content: bytes, name: str) -> None:
    bounds, repeated = limits(), _REPEATED.get(kind)
    if content[:2] in _PLAIN:
        repeated = b"#"
        if len(content) > bounds.picture_text:
            raise ImageError(f"{name} is text of {len(content)} bytes; {the_limit('picture_text')}")
    if repeated and (found := content.count(repeated)) > bounds.picture_repeats:
        what = one_line(repeated.rstrip(b"\0").decode())
        raise ImageError(f"{name} has {what} in it {found} times; {the_limit('picture_repeats')}")
    if kind == "JPEG2000":
        try:
            found = jpeg2000.records(content, bounds.picture_records)
        except ValueError as error:
            raise ImageError(f"{name} is a damaged {kind} file: {error}") from None
        if found > bounds.picture_records:
            raise ImageError(
                f"{name} has {found} code blocks, precincts or tiles; "
                f"{the_limit('picture_records')}"
            )
    if kind == "TIFF" and (strips := _strips(content)) > bounds.picture_strips:
        raise ImageError(f"{name} has {strips} strips or tiles; {the_limit('picture_strips')}")


def _strips(content: bytes) -> int:
    """How many strips or tiles a TIFF claims in its first directory."""
    order, big = "<" if content.startswith(b"II") else ">", b"+" in content[2:4]
    try:
        (start,) = struct.unpack_from(f"{order}{'Q' if big else 'L'}", content, 8 if big else 4)
        (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", content, start)
    except (struct.error, OverflowError):
        return 0  # The reader says what is wrong with it.
    entry = struct.Struct(f"{order}HH{'Q8x' if big else 'L4x'}")
    start += 8 if big else 2
    fit = max(0, min(count, (len(content) - start) // entry.size))
    entries = entry.iter_unpack(memoryview(content)[start : start + fit * entry.size])
    return max((found for tag, _, found in entries if tag in _STRIP_TAGS), default=0)


@cache
def _quiet_libtiff() -> None:
    """Its errors come as exceptions of Pillow, too, but only after it wrote to stderr, sometimes a
    line for each row of pixels."""
    try:
        library = ctypes.CDLL(Image.core.__file__)  # type: ignore[attr-defined]
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            function = getattr(library, name)
            function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            function(None)
    except (OSError, AttributeError):
        pass  # A build of Pillow that hides the library, or has none.
