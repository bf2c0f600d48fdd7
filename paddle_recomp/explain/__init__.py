"""The picture of an answer: which patches were kept, for which reason, and what became of the
others."""

from PIL import Image

from paddle_recomp.explain.page import draw_overlay
from paddle_recomp.preprocess import ImageProcessor, crop_box
from paddle_recomp.types import Compressed, stage_counts

__all__ = ["draw_answer", "draw_overlay", "stage_counts"]


def draw_answer(
    picture: Image.Image,
    compressed: Compressed,
    processor: ImageProcessor,
    question: str,
    answer: str | None = None,
) -> Image.Image:
    """`draw_overlay` for a picture that the processor prepared: CLIP's grid is a square one."""
    side = int(compressed.owner.shape[1] ** 0.5)
    box = crop_box(picture.size, processor)
    return draw_overlay(picture, compressed, (side, side), box, question, answer)
