"""Pictures that ask for much memory or time, and files that are no pictures at all. Each is read in
a process with limits of both."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddle_recomp.errors import ImageError
from paddle_recomp.preprocess import load_image
from tests.limited import limited

READ = """
from paddle_recomp.preprocess import load_image
print(load_image("picture").size)
"""


def read(folder: Path, content: bytes, megabytes: int = 600) -> str:
    (folder / "picture").write_bytes(content)
    return limited(READ, megabytes, folder=folder)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


HEAD = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
PIXELS = (b"IDAT", zlib.compress(bytes(72)))
EMPTY = chunk(b"IDAT", b"")
PROFILE = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(1_000_000)))
JPEG = io.BytesIO()
Image.new("RGB", (8, 8)).save(JPEG, "JPEG", progressive=True)
FIRST_SCAN = JPEG.getvalue().index(b"\xff\xda")


def jpeg2000(
    side: int, precinct: int = 0x66, tile: int = 0, block: int = 4, hidden: bytes = b""
) -> bytes:
    """One of a few hundred bytes that says how large it is and how finely it is divided."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG2000", no_jp2=True, precinct_size=(64, 64))
    content = bytearray(buffer.getvalue())
    size, style = content.index(b"\xff\x51") + 2, content.index(b"\xff\x52") + 2
    content[size + 4 : size + 12] = struct.pack(">2L", side, side)
    content[size + 20 : size + 28] = struct.pack(">2L", tile or side, tile or side)
    content[style + 8 : style + 10] = bytes([block, block])
    end = style + int.from_bytes(content[style : style + 2], "big")
    content[style + 12 : end] = bytes([precinct]) * (end - style - 12)
    return bytes(content[: style - 2] + hidden + content[style - 2 :])


def tiff(strips: int, content: bytes = b"", big: bool = False) -> bytes:
    """A TIFF of one row a strip that claims so many strips; their places are in `content`."""
    entries = [(256, 3, 1, 1), (257, 4, 1, 40_000_000), (258, 3, 1, 8), (259, 3, 1, 1)]
    entries += [(262, 3, 1, 1), (273, 4, strips, 1000), (278, 3, 1, 1), (279, 4, strips, 1000)]
    if big:
        head = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, len(entries))
        table = b"".join(struct.pack("<HHQQ", *entry) for entry in entries) + bytes(8)
    else:
        head = b"II*\0" + struct.pack("<LH", 8, len(entries))
        table = b"".join(struct.pack("<HHLL", *entry) for entry in entries) + bytes(4)
    return (head + table).ljust(1000, b"\0") + content


HOSTILE: list[tuple[Callable[[], bytes], str]] = [
    (lambda: b"\xff\xd8" + b"\xff\xe0\0\2" * 5_000_000, "in more pieces; the limit is 500000"),
    (lambda: b"\xff\xd8" + b"\xff" * 20_000_000, "in more pieces; the limit is 500000 (RECOM"),
    (lambda: b"\xff\xd8\xff\xe0\0\2" + b"x" * 20_000_000, "in more pieces; the limit is 50000"),
    (
        lambda: b"\xff\xd8" + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)) * 400,
        "has Exif in it 400 times; the limit is 200 (RECOMP_LIMIT_PICTURE_REPEATS)",
    ),
    (
        lambda: b"\xff\xd8" + (b"\xff\xed\xff\xffPhotoshop 3.0\0" + bytes(65519)) * 600,
        "has more in front of its pixels; the limit is 32000000 (RECOMP_LIMIT_PICTURE_HEADER)",
    ),
    (
        lambda: (
            JPEG.getvalue()[:FIRST_SCAN].replace(b"\0\x08\0\x08", b"\x13\x88\x13\x88")
            + JPEG.getvalue()[FIRST_SCAN:-2] * 2000
        ),
        "5000×5000 pixels and goes over them 20000 times; the limit is 2500000000 (RECOMP_LIM",
    ),
    (lambda: b"P6 #" + b"x" * 20_000_000, "in more pieces; the limit is 500000 (RECOMP_LIMI"),
    (lambda: b"P6\n" + b"#\n" * 5_000_000, "in more pieces; the limit is 500000 (RECOMP_LIMI"),
    (lambda: b"P3 9000 900 255\n" + b"#\n" * 7_000_000, "has # in it 7000000 times; the limit"),
    (lambda: b"P3 5000 5000 255\n" + b"1 " * 9_000_000, "is text of 18000017 bytes; the limit"),
    (lambda: b"BM" + bytes(20_000_000), "is a damaged BMP file"),
    (lambda: b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\0" * 5_000_000, "in more pieces; the limit is "),
    (lambda: png(HEAD) + EMPTY * 1_700_000, "in more pieces; the limit is 500000 (RECOMP_LI"),
    (lambda: png(HEAD, PIXELS) + EMPTY * 1_700_000, "in more pieces; the limit is 500000 ("),
    (lambda: png(HEAD, PIXELS) + PROFILE * 9000, "has iCCP in it 9000 times; the limit is 200"),
    (lambda: tiff(40_000_000), "has 40000000 strips or tiles; the limit is 250000 (RECOMP_LI"),
    (lambda: tiff(9_000_000, bytes(36_000_000), big=True), "has 9000000 strips or tiles; the"),
    (
        lambda: jpeg2000(7000, precinct=0x11),
        "has 36750000 code blocks, precincts or tiles; the",
    ),
    (lambda: jpeg2000(7000, block=0), "has 9187500 code blocks, precincts or tiles; the limit"),
    (lambda: jpeg2000(7000, tile=10), "has 1470000 code blocks, precincts or tiles; the limit"),
    (
        # The decoder looks for markers behind one that it does not know.
        lambda: jpeg2000(7000, hidden=b"\xff\x30\0\x0e\xff\x52\0\x0c" + bytes(10)),
        "is a damaged JPEG2000 file: it has the marker ff30 of 14 bytes in a header",
    ),
    (
        lambda: png((b"IHDR", HEAD[1][:4] + b"\0\4\0\0" + HEAD[1][8:]), PIXELS),
        "the limit is 200000 (R",
    ),
]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What one process said to each of them."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, (content, _) in enumerate(HOSTILE):
        (folder / f"{number}").write_bytes(content())
    code = f"""
from paddle_recomp.preprocess import load_image
for number in range({len(HOSTILE)}):
    try:
        print(load_image(str(number)).size)
    except RecompError as error:
        print(f"{{type(error).__name__}}: {{error}}")
"""
    return limited(code, megabytes=700, seconds=120, folder=folder).splitlines()


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_what_takes_long_is_refused(said: list[str], number: int) -> None:
    assert len(said) == len(HOSTILE)
    assert said[number].startswith(f"ImageError: '{number}' ")
    assert HOSTILE[number][1] in said[number]
    assert len(said[number]) < 300


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"no_jp2": True, "plt": True},
        {"tile_size": (128, 64), "irreversible": True, "quality_layers": [40, 20]},
        {"num_resolutions": 3, "codeblock_size": (16, 16), "progression": "RPCL"},
        {"precinct_size": (64, 64), "comment": "a comment"},
    ],
    ids=range(5),
)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_jpeg_2000_of_all_kinds_is_read(mode: str, options: dict[str, object]) -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert(mode).save(buffer, "JPEG2000", **options)
    assert load_image(buffer.getvalue()).size == (256, 256)


@pytest.mark.parametrize(
    "kind", [b"....ftypavif....", b"RIFF....WEBPVP8 ", b"BM", b"\x89PNG\r\n\x1a\n"]
)
def test_a_huge_file_is_not_read(tmp_path: Path, kind: bytes) -> None:
    with (tmp_path / "picture").open("wb") as file:
        file.write(kind)
        file.truncate(4 * 2**30)  # It takes no room on the disk.
    said = limited(READ, 100, folder=tmp_path)
    assert "picture has 4294967296 bytes; the limit is 200000000 (RECOMP_LIMIT_PICTURE" in said


def test_bytes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECOMP_LIMIT_PICTURE_BYTES", "99")
    with pytest.raises(ImageError, match=r"file has 100 bytes; the limit is 99 \(RECOMP_LIMIT"):
        load_image(bytes(100))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_greys_take_little_memory(tmp_path: Path, mode: str) -> None:
    code = f"""
from PIL import Image
Image.new("{mode}", (4000, 3000), 1000).save("picture", "TIFF")
{READ}"""
    assert limited(code, 250, folder=tmp_path) == "(4000, 3000)"


@pytest.mark.parametrize(("kind", "most"), [("P6", 100), ("P6", 1023), ("P6", 65535), ("P5", 200)])
def test_a_ppm_of_any_range_is_what_pillow_makes_of_it(kind: str, most: int) -> None:
    """Pillow reads them pixel by pixel, in Python."""
    random, size = np.random.default_rng(0), (9, 7, 3 if kind == "P6" else 1)
    values = random.integers(0, most + (most < 200), size).astype(">u2" if most > 255 else "u1")
    content = f"{kind}\n# a comment\n7 9\n{most}\n".encode() + values.tobytes()
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(load_image(content)), expected)
    with pytest.raises(ImageError, match="is damaged"):
        load_image(content[:-1])


def test_a_large_ppm_of_any_range(tmp_path: Path) -> None:
    assert read(tmp_path, b"P6 4000 4000 100\n" + bytes(48_000_000)) == "(4000, 4000)"


def test_bands_are_scaled_alike() -> None:
    """A picture of several bands has one range of values."""
    values = np.linspace(-1, 1, 300, dtype=np.float32)[:, None].repeat(3, axis=1)
    found = np.asarray(load_image(Image.fromarray(values)))[:, :, 0]
    np.testing.assert_array_equal(found, np.rint((values.astype(float) + 1) / 2 * 255))


def test_devices_are_not_opened() -> None:
    for path in ("/dev/zero", "/dev/tty", "/dev/null"):
        with pytest.raises(ImageError, match=f"{path} cannot be read: it is not a regular file"):
            load_image(path)


def test_a_pipe_that_nobody_writes_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "picture")
    code = f"import os\nos.environ['RECOMP_LIMIT_PIPE_SECONDS'] = '1'{READ}"
    expected = (
        "picture cannot be read: it is a pipe that does not end; the limit is 1 (RECOMP_LIMIT"
    )
    assert expected in limited(code, folder=tmp_path)


def test_an_error_while_a_picture_is_read() -> None:
    with pytest.raises(ImageError, match=r"^/proc/self/mem cannot be read: Input/output error"):
        load_image("/proc/self/mem")


def test_a_path_that_no_system_has(tmp_path: Path) -> None:
    for path in (tmp_path / ("a" * 300), "a/" * 3000):
        with pytest.raises(ImageError, match="cannot be read: File name too long"):
            load_image(path)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "group4", "packbits"])
def test_libtiff_says_nothing(capfd: pytest.CaptureFixture[str], compression: str) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8) * 255
    buffer = io.BytesIO()
    Image.fromarray(noise).convert("1").save(buffer, "TIFF", compression=compression)
    content = bytearray(buffer.getvalue())
    middle = len(content) // 3
    content[middle : middle + 100] = bytes(range(100, 200))
    with contextlib.suppress(ImageError):
        load_image(bytes(content))
    assert capfd.readouterr().err == ""
