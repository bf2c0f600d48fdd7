"""Reading pictures: every mode, every broken file, and the orientation."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import warnings
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paddle_recomp.errors import ImageError, ImageNotFoundError
from paddle_recomp.preprocess import load_image, load_images
from tests.threads import at_once

RED = (200, 30, 40)


@pytest.fixture(autouse=True)
def _no_warnings() -> None:
    warnings.simplefilter("error")


def noise(width: int = 64, height: int = 48) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def file_bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and has almost no data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_path_bytes_and_image_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise().save(path)
    expected = np.asarray(noise())
    for source in (path, str(path), path.read_bytes(), noise()):
        image = load_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000"])
def test_formats(kind: str) -> None:
    image = load_image(file_bytes(Image.new("RGB", (32, 24), RED), kind))
    assert image.size == (32, 24)
    assert np.abs(np.asarray(image, dtype=int) - RED).max() < 8


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "no.png", tmp_path / "a\0b", Path(__file__) / "no.png"):
        with pytest.raises(ImageNotFoundError, match="there is no picture at"):
            load_image(path)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is an empty file"),
        (b"P", "known format"),
        (b"hello, this is text", "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known format"),
        (b"\x89PNG\r\n\x1a\n", "damaged PNG"),
        (b"\xff\xd8\xff\xe0\x00", "damaged JPEG"),
    ],
)
def test_not_a_picture(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=rf"broken\.png.*{message}"):
        load_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_truncated(kind: str, kept: float) -> None:
    data = file_bytes(noise(), kind)
    with pytest.raises(ImageError, match="damaged"):
        load_image(data[: int(len(data) * kept)])


def test_damaged_bytes_never_escape_as_other_errors() -> None:
    random = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        original = np.frombuffer(file_bytes(noise(), kind), dtype=np.uint8)
        for _ in range(30):
            data = original.copy()
            data[random.integers(0, len(data), 20)] = random.integers(0, 256, 20)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # What Pillow says about metadata is its own.
                with contextlib.suppress(ImageError):
                    assert load_image(data.tobytes()).mode == "RGB"


@pytest.mark.parametrize("size", [(20_000, 10_000), (10_000, 10_000), (50_000, 50_000)])
def test_too_large_is_refused_from_the_header(size: tuple[int, int]) -> None:
    # 100 megapixels make Pillow warn, 200 make it fail; neither may be seen.
    with pytest.raises(ImageError, match=f"{size[0]}×{size[1]} pixels; the limit is 50 megapixels"):
        load_image(png_header(*size))


def test_limit_is_an_option() -> None:
    assert load_image(noise(), max_pixels=64 * 48).size == (64, 48)
    with pytest.raises(ImageError, match="limit"):
        load_image(noise(), max_pixels=64 * 48 - 1)


def test_zero_sized() -> None:
    with pytest.raises(ImageError, match="is empty: 0×5 pixels"):
        load_image(Image.new("RGB", (0, 5)))


def test_animation_gives_the_first_frame() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, (0, 0, 255))]
    for kind in ("GIF", "PNG", "WEBP"):
        data = file_bytes(
            frames[0], kind, save_all=True, append_images=frames[1:], duration=50, lossless=True
        )
        assert load_image(data).getpixel((8, 8)) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = Image.new("RGB", (40, 20))
    upright.paste(RED, (0, 0, 10, 10))
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(file_bytes(stored, "PNG", exif=exif))
    assert image.size == (40, 20)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(upright))


def test_broken_exif_is_no_reason_to_refuse() -> None:
    data = file_bytes(noise(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert load_image(data).size == (64, 48)


def _pixels(image: Image.Image, thread: int) -> np.ndarray:
    return np.asarray(load_image(image))


def test_a_picture_that_threads_share_is_decoded_once(tmp_path: Path) -> None:
    """Pillow opens a file without reading it; whoever asks for its pixels decodes it."""
    noise(800, 600).save(tmp_path / "noise.jpg")
    expected = np.asarray(load_image(tmp_path / "noise.jpg"))
    for _ in range(5):
        with Image.open(tmp_path / "noise.jpg") as image:
            for found in at_once(8, partial(_pixels, image)):
                np.testing.assert_array_equal(found, expected)


def test_a_damaged_picture_that_is_open_already(tmp_path: Path) -> None:
    data = file_bytes(noise(), "JPEG")
    with (
        Image.open(io.BytesIO(data[: len(data) // 2])) as image,
        pytest.raises(ImageError, match="the picture is damaged"),
    ):
        load_image(image)


def test_the_callers_image_is_left_alone() -> None:
    image = Image.new("P", (4, 4))
    image.info["transparency"] = bytes([0, 255])
    load_image(image)
    assert "transparency" in image.info


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128, 255])])
def test_palette(transparency: int | bytes | None) -> None:
    image = Image.new("RGB", (8, 8), RED).quantize(4)
    options = {} if transparency is None else {"transparency": transparency}
    assert load_image(file_bytes(image, "PNG", **options)).getpixel((0, 0)) == RED


MODES = {
    "1": 1,
    "L": RED[0],
    "I": RED[0],
    "F": RED[0],
    "P": 0,
    "RGB": RED,
    "RGBX": (*RED, 0),
    "RGBA": (*RED, 9),
    "RGBa": (100, 15, 20, 128),
    "CMYK": (55, 225, 215, 0),
    "YCbCr": (81, 105, 213),
    "LAB": (112, 192, 170),
    "HSV": (253, 217, 200),
    "LA": (RED[0], 9),
    "La": (100, 128),
    "PA": (0, 9),
    "I;16": RED[0] * 257,
    "I;16L": RED[0] * 257,
    "I;16B": RED[0] * 257,
    "I;16N": RED[0] * 257,
}
"""The modes that Pillow has, each with the value of RED, or of its red as a grey."""


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow(mode: str, orientation: int) -> None:
    value: Any = MODES[mode]
    image = Image.new(mode, (4, 3), value)
    if mode in ("P", "PA"):
        image.putpalette(list(RED))
    image.getexif()[0x0112] = orientation
    loaded = load_image(image)
    assert loaded.size == ((4, 3) if orientation == 1 else (3, 4))
    pixel = np.asarray(loaded)[1, 1].astype(int)
    grey = (255,) * 3 if mode == "1" else (RED[0],) * 3
    colours = mode.startswith(("RGB", "P", "CMYK", "YCbCr", "LAB", "HSV"))
    assert np.abs(pixel - (RED if colours else grey)).max() <= 2


@pytest.mark.parametrize("odd", [None, 3, [], np.zeros((3, 3)), object()])
def test_what_is_no_picture(odd: Any) -> None:
    with pytest.raises(ImageError, match=f"of type {type(odd).__name__}; expected a path"):
        load_image(odd)


def test_transparency_is_dropped_as_clip_does() -> None:
    assert load_image(Image.new("RGBA", (4, 4), (*RED, 0))).getpixel((0, 0)) == RED
    assert load_image(Image.new("LA", (4, 4), (77, 0))).getpixel((0, 0)) == (77, 77, 77)


def test_other_modes() -> None:
    assert load_image(Image.new("L", (4, 4), 77)).getpixel((0, 0)) == (77, 77, 77)
    assert load_image(Image.new("1", (4, 4), 1)).getpixel((0, 0)) == (255, 255, 255)
    cmyk = load_image(file_bytes(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert cmyk.getpixel((4, 4))[0] > 230  # type: ignore[index]
    assert cmyk.getpixel((4, 4))[1] < 25  # type: ignore[index]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, axis=0)
    expected = np.arange(256)
    for kind in ("PNG", "TIFF"):
        image = load_image(file_bytes(Image.fromarray(ramp), kind))
        np.testing.assert_array_equal(np.asarray(image)[0, :, 0], expected)
    deep = load_image(Image.fromarray(ramp.astype(np.int32)))
    np.testing.assert_array_equal(np.asarray(deep)[0, :, 0], expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 200.0], [0, 100, 200]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([7.0, 7.0, float("nan")], [7, 7, 0]),
        ([5000.0, 5000.0, 5000.0], [255, 255, 255]),
    ],
)
def test_float_greys(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert image.mode == "F"
    np.testing.assert_allclose(np.asarray(load_image(image))[0, :, 0], expected, atol=1)


def test_a_pipe_and_a_path_that_comes_twice(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    content = file_bytes(noise(), "PNG")
    writer = threading.Thread(target=path.write_bytes, args=[content])
    writer.start()
    first, second = load_images([path, path])
    writer.join()
    assert first is second
    np.testing.assert_array_equal(np.asarray(first), np.asarray(noise()))

    monkeypatch.setenv("RECOMP_LIMIT_PICTURE_BYTES", str(len(content) - 1))
    writer = threading.Thread(target=path.write_bytes, args=[content])
    writer.start()
    with pytest.raises(ImageError, match=r"pipe\.png has more bytes; the limit is \d+ \("):
        load_image(path)
    writer.join()
