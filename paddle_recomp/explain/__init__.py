"""The picture of an answer: which patches were kept, for which reason, and where the others
went."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from paddle_recomp.errors import ConfigError
from paddle_recomp.explain.page import beside, draw_overlay
from paddle_recomp.files import is_folder
from paddle_recomp.preprocess import ImageProcessor, crop_box
from paddle_recomp.types import StageInfo, VisualTokens

__all__ = ["check_output", "draw_answer", "draw_overlay", "save", "save_answer"]


def draw_answer(
    pictures: Sequence[Image.Image],
    compressed: Sequence[VisualTokens],
    stages: Sequence[StageInfo],
    processor: ImageProcessor,
    question: str,
    answer: str | None = None,
) -> Image.Image:
    """`draw_overlay` for each picture that the processor prepared, side by side. The grid is
    square, as CLIP's is."""
    pages = []
    for picture, one in zip(pictures, compressed, strict=True):
        side = int(one.owner.shape[1] ** 0.5)
        box = crop_box(picture.size, processor)
        pages.append(draw_overlay(picture, one, stages, (side, side), box, question, answer))
    return beside(pages)


def save_answer(
    path: Path,
    pictures: Sequence[Image.Image],
    compressed: Sequence[VisualTokens],
    stages: Sequence[StageInfo],
    processor: ImageProcessor,
    question: str,
    answer: str | None = None,
) -> None:
    """Draws `draw_answer` into a file.

    Raises: ConfigError when it cannot be written."""
    save(draw_answer(pictures, compressed, stages, processor, question, answer), path)


def save(drawn: Image.Image, path: Path) -> None:
    """Writes a drawing into a file. Raises: ConfigError when it cannot be written."""
    try:
        drawn.save(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot write the overlay: {error}") from error


def check_output(path: Path) -> None:
    """Looks, before the work for it begins, whether a drawing could be written into a file of this
    name.

    Raises: ConfigError when its folder does not exist, when it is a folder itself, or when its
    extension names no format in which pictures are written."""
    if not is_folder(path.absolute().parent):
        raise ConfigError(f"{path}: there is no folder {path.absolute().parent}")
    if is_folder(path):
        raise ConfigError(f"{path} is a folder; expected a file for the overlay")
    kind = Image.registered_extensions().get(path.suffix.lower())
    try:
        Image.new("RGB", (8, 8)).save(io.BytesIO(), kind or "")
    except Exception as error:  # Each format has errors of its own.
        raise ConfigError(
            f"{path}: pictures are not written as {path.suffix!r}; expected .png, for example"
        ) from error
