"""Every bound on what a file may ask of this machine. A file beyond one of them is refused, with
the bound and with what was found. The environment can set each of them, the first by
RECOMP_LIMIT_PICTURE_PIXELS. docs/security.md lists them all."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields

from paddle_recomp.errors import ConfigError

_PREFIX = "RECOMP_LIMIT_"


def _bound(value: int, counted: str) -> int:
    """A field of `Limits`; `counted` says what the number counts."""
    bound: int = field(default=value, metadata={"counted": counted})
    return bound


@dataclass(frozen=True)
class Limits:
    """The bounds, each with the words for what it counts."""

    picture_pixels: int = _bound(50_000_000, "pixels of a picture")
    picture_side: int = _bound(200_000, "pixels of the longer side of a picture")
    picture_bytes: int = _bound(200_000_000, "bytes of a picture's file")
    pipe_seconds: int = _bound(60, "seconds in which a pipe with a picture has to end")
    picture_header: int = _bound(32_000_000, "bytes in front of the pixels of a picture")
    picture_reads: int = _bound(
        500_000, "pieces (such as chunks, markers or bytes) in which a picture's file is read"
    )
    picture_repeats: int = _bound(
        200, "colour profiles, Exif blocks, or comments among numbers, in a picture's file"
    )
    picture_scans: int = _bound(2_500_000_000, "pixels times scans of a progressive JPEG")
    picture_strips: int = _bound(250_000, "strips or tiles of a TIFF")
    picture_records: int = _bound(1_000_000, "code blocks, precincts or tiles of a JPEG 2000")
    picture_text: int = _bound(16_000_000, "bytes of a PPM whose numbers are written as text")
    prepared_side: int = _bound(8_192, "pixels of a side to which pictures are prepared")
    file_bytes: int = _bound(64_000_000, "bytes of a file that is read as a whole, such as JSON")
    json_values: int = _bound(4_000_000, "values in a JSON text, by its commas and brackets")
    json_depth: int = _bound(100, "lists and objects of a JSON text in one another")
    json_digits: int = _bound(100, "digits of an integer in a JSON text")
    header_bytes: int = _bound(16_000_000, "bytes of the description of a weight file's tensors")
    tensors: int = _bound(100_000, "tensors of a weight file")
    axes: int = _bound(32, "axes of a tensor")
    pickle_steps: int = _bound(1_000_000, "steps of the pickle in a file of torch.save")
    pickle_stack: int = _bound(10_000, "values that such a pickle has on its stack")
    sentencepiece_bytes: int = _bound(16_000_000, "bytes of a tokenizer.model")
    piece_letters: int = _bound(1_000, "letters of a piece in a tokenizer.model")
    token_holes: int = _bound(100_000, "ids that a tokenizer's vocabulary leaves out")
    layers: int = _bound(1_024, "layers of a tower or of a language model")
    positions: int = _bound(2_000_000, "positions of a text tower or of a language model")

    def __post_init__(self) -> None:
        for item in fields(self):
            if getattr(self, item.name) < 1:
                raise ConfigError(f"{variable(item.name)} is below 1; expected a positive number")


def limits() -> Limits:
    """The bounds of this process. Raises: ConfigError for an environment variable that sets one to
    anything but a positive integer."""
    given: dict[str, int] = {}
    for item in fields(Limits):
        text = os.environ.get(variable(item.name))
        if text is None:
            continue
        if not (text.isascii() and text.isdecimal() and len(text) < 19):
            raise ConfigError(
                f"{variable(item.name)} is {text[:40]!r}; expected a positive integer"
            )
        given[item.name] = int(text)
    return Limits(**given)


def variable(name: str) -> str:
    """The environment variable that sets a bound."""
    return f"{_PREFIX}{name.upper()}"


def the_limit(name: str) -> str:
    """The end of a message about what is beyond a bound: the bound, and the way to another one."""
    return f"the limit is {getattr(limits(), name)} ({variable(name)})"
