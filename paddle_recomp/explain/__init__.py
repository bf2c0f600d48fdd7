"""The picture of an answer: which patches were kept, for which reason, and where the others
went."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from paddle_recomp.errors import ConfigError
from paddle_recomp.explain.page import beside, draw_overlay
from paddle_recomp.preprocess import ImageProcessor, crop_box
from paddle_recomp.types import StageInfo, VisualTokens

__all__ = ["draw_answer", "draw_overlay", "save_answer"]


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
    drawn = draw_answer(pictures, compressed, stages, processor, question, answer)
    try:
        drawn.save(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot write the overlay: {error}") from error
