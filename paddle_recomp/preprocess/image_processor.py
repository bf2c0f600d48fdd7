"""From a picture to the pixel values that CLIP's vision tower reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from paddle_recomp.errors import CheckpointError, ImageError
from paddle_recomp.files import is_file
from paddle_recomp.json_files import number_of, one_line, read_json, shown
from paddle_recomp.limits import limits, the_limit
from paddle_recomp.preprocess.images import load_image

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the original picture; may lie outside of it."""

_MAX_WORK_PIXELS = 100_000_000
_LARGEST = 1_000_000
"""Of the numbers by which pixels are scaled and shifted."""


@dataclass(frozen=True)
class ImageProcessor:
    """CLIP's preparation of pictures, with the constants of one checkpoint.

    A picture in 8-bit RGB goes through these steps, in this order:

    1. Pad, only where `aspect` is `pad` and the sides differ. The picture is put into a square
       whose side is the longer one, floor(difference / 2) pixels from the left or from the top.
       Around it each channel is int(mean · 255), truncated.
    2. Resize. The shorter side becomes `size`, the longer int(size · longer / shorter), truncated.
       The filter is bicubic as Pillow has it: a = −0.5; where a side shrinks, the filter is
       widened by the same factor (antialiasing); the weights of the pixels within the picture
       are divided by their sum, then rounded to 22 binary places. The horizontal pass comes
       first, then the vertical one; each rounds half up and clips to 8 bits.
    3. Crop the square of side `crop` whose left and top edges are at floor((side − crop) / 2).
       Values beyond the picture are zero.
    4. Rescale: each value times `rescale`, in float64, rounded to float32.
    5. Normalise: minus `mean`, then divided by `std`, both in float32.

    The result does not depend on the version of Pillow. It is what transformers makes with Pillow
    up to 12.1: the Pillow of the time when the published checkpoints were trained."""

    size: int
    """Pixels of the shorter side after resizing."""
    crop: int
    """Pixels of each side of the centre crop, which the vision tower sees."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    aspect: Literal["crop", "pad"] = "crop"
    """Cut off everything beyond the centre square, or first pad to a square (LLaVA's `pad`)."""
    rescale: float = 1 / 255
    pad_colour: tuple[int, int, int] | None = None
    """Around a padded picture; None: the mean, truncated, as LLaVA has it."""

    def __post_init__(self) -> None:
        """Raises: CheckpointError for sizes and colours that no preparation has."""
        for name in ("size", "crop"):
            if not 1 <= getattr(self, name) <= limits().prepared_side:
                raise CheckpointError(
                    f"pictures are prepared to {name} {getattr(self, name)}; "
                    f"{the_limit('prepared_side')}"
                )
        for value in (*self.mean, *self.std, self.rescale):
            if not abs(value) <= _LARGEST:
                raise CheckpointError(
                    f"pictures are prepared with the number {value}; expected at most {_LARGEST}"
                )

    @property
    def background(self) -> tuple[int, int, int]:
        """The colour around a padded picture."""
        if self.pad_colour is not None:
            return self.pad_colour
        # Truncated, not rounded: LLaVA's own background.
        red, green, blue = (int(channel * 255) for channel in self.mean)
        return red, green, blue

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike[str], aspect: Literal["crop", "pad"] | None = None
    ) -> ImageProcessor:
        """Read preprocessor_config.json (or the same fields inside processor_config.json).

        `aspect` overrides the file's value: LLaVA keeps its `image_aspect_ratio` in the model's
        config.json.

        Raises: CheckpointNotFoundError when neither file is there; CheckpointError for a field
        that is missing, malformed or asks for something other than CLIP's preparation."""
        path, fields = _read_processor_fields(Path(folder))
        for flag in ("do_resize", "do_center_crop"):
            if fields.get(flag, True) is not True:
                raise CheckpointError(
                    f"{path}: {flag} is {shown(fields[flag])}; only true is supported"
                )
        if fields.get("resample", 3) != 3:
            raise CheckpointError(
                f"{path}: resample is {shown(fields['resample'])}; only 3 (bicubic) is supported"
            )
        normalise = fields.get("do_normalize", True)
        if aspect is None:
            aspect = "pad" if fields.get("do_pad") else "crop"
        return cls(
            size=_side(path, fields, "size", ("shortest_edge",)),
            crop=_side(path, fields, "crop_size", ("height", "width")),
            mean=_channels(path, fields, "image_mean") if normalise else (0.0, 0.0, 0.0),
            std=_channels(path, fields, "image_std", zero=False) if normalise else (1.0, 1.0, 1.0),
            aspect=aspect,
            rescale=(
                number_of(path, fields, "rescale_factor", default=1 / 255)
                if fields.get("do_rescale", True)
                else 1.0
            ),
        )

    def steps(self) -> dict[str, Any]:
        """The same as plain data for JSON, in the order of the steps."""
        return {
            "aspect": self.aspect,
            "pad_colour": list(self.background),
            "size": self.size,
            "resample": "bicubic",
            "passes": ["horizontal", "vertical"],
            "rounding": "uint8",
            "crop": self.crop,
            "fill": [0, 0, 0],
            "rescale": self.rescale,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def __call__(self, images: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
        """Pixel values [B, 3, S, S] of RGB pictures, S = `crop`.

        Raises: ImageError when there is no picture, or one so elongated that resizing its
        shorter side to `size` would need an enormous intermediate picture."""
        if not images:
            raise ImageError("there is no picture to prepare")
        return np.stack([self._pixels(image) for image in images])

    def _pixels(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """[3, S, S]"""
        image = image if image.mode == "RGB" else load_image(image)
        if self.aspect == "pad":
            image = self._pad_to_square(image)
        width, height = self._resized(image.size)
        _check_work(image.size, width * height)
        image = resize(image, width, height)
        left, top = (width - self.crop) // 2, (height - self.crop) // 2
        # Where the crop reaches beyond a smaller picture, Pillow fills with zeros, as CLIP does.
        image = image.crop((left, top, left + self.crop, top + self.crop))
        pixels = (np.asarray(image, dtype=np.float64) * self.rescale).astype(np.float32)
        pixels = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _pad_to_square(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        side = max(width, height)
        if width == height:
            return image
        _check_work(image.size, side * side)
        square = Image.new("RGB", (side, side), self.background)
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        return square

    def _resized(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Width and height after the shorter side was brought to `size`."""
        width, height = image_size
        if width <= height:
            return self.size, int(self.size * height / width)
        return int(self.size * width / height), self.size


def crop_box(image_size: tuple[int, int], processor: ImageProcessor) -> Box:
    """The part of a picture of (width, height) that the grid of patches covers.

    With `pad`, or a crop larger than the resized picture, it reaches beyond the picture."""
    offset_x = offset_y = 0
    if processor.aspect == "pad":
        side = max(image_size)
        offset_x, offset_y = (side - image_size[0]) // 2, (side - image_size[1]) // 2
        image_size = (side, side)
    resized = processor._resized(image_size)
    scale_x, scale_y = image_size[0] / resized[0], image_size[1] / resized[1]
    left, top = ((side - processor.crop) // 2 for side in resized)
    return (
        left * scale_x - offset_x,
        top * scale_y - offset_y,
        (left + processor.crop) * scale_x - offset_x,
        (top + processor.crop) * scale_y - offset_y,
    )


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bicubic, the width first, then the height, each rounded to 8 bits."""
    # One axis a call. In a call for both Pillow chooses the order, and another order rounds
    # differently: up to 12.1 the width is always first, later the height of some tall pictures.
    for size in ((width, image.height), (width, height)):
        image = image.resize(size, Image.Resampling.BICUBIC)
    return image


def _check_work(size: tuple[int, int], pixels: int) -> None:
    if pixels > _MAX_WORK_PIXELS:
        raise ImageError(
            f"a picture of {size[0]}×{size[1]} pixels is too elongated to be prepared: crop it"
        )


def _read_processor_fields(folder: Path) -> tuple[Path, dict[str, Any]]:
    plain, nested = folder / "preprocessor_config.json", folder / "processor_config.json"
    if not is_file(plain) and is_file(nested):
        inner = read_json(nested).get("image_processor")
        if isinstance(inner, dict):
            return nested, inner
    return plain, read_json(plain)


def _side(path: Path, fields: dict[str, Any], key: str, names: tuple[str, ...]) -> int:
    value = fields.get(key)
    if isinstance(value, dict) and set(value) == set(names):
        first, *others = value.values()
        value = first if all(other == first for other in others) else value
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"{path}: {key} is {one_line(repr(fields.get(key)))}; expected a number of pixels or "
            f"equal {' and '.join(names)}"
        )
    if value > limits().prepared_side:
        raise CheckpointError(f"{path}: {key} is {value}; {the_limit('prepared_side')}")
    return value


def _channels(
    path: Path, fields: dict[str, Any], key: str, zero: bool = True
) -> tuple[float, float, float]:
    value = fields.get(key)
    if not isinstance(value, list) or len(value) != 3 or (not zero and 0 in value):
        raise CheckpointError(f"{path}: {key} is {one_line(repr(value))}; expected three numbers")
    red, green, blue = (number_of(path, {key: channel}, key) for channel in value)
    return red, green, blue
