"""What was recorded: which pictures of scikit-image (file, box) are behind preprocess.npz, which
generated ones behind prepared_pixels.json, and which ways to change a distribution behind
sampling.npz."""

import hashlib
from typing import Any

import numpy as np
from PIL import Image

PICTURES: dict[str, tuple[str, tuple[int, int, int, int] | None]] = {
    "square": ("astronaut.png", None),
    "landscape": ("coffee.png", None),
    "odd": ("chelsea.png", None),
    "portrait": ("chelsea.png", (10, 5, 107, 296)),
    "grey": ("coins.png", None),
    "small": ("astronaut.png", (200, 80, 233, 101)),
    "column": ("coffee.png", (300, 0, 301, 60)),
}
SPARSE = 12
"""Of the cases at 336 pixels every 12th pixel is kept, so that the file stays small."""

GENERATED: dict[str, tuple[int, int]] = {
    "tall": (264, 607),
    "very_tall": (130, 1000),
    "ribbon": (21, 2200),
    "twice_as_tall": (300, 600),
    "portrait": (300, 451),
    "wide": (607, 264),
    "same_size": (224, 224),
    "small": (20, 17),
    "column": (1, 60),
    "row": (60, 1),
}
"""Width and height of the pictures that `generate` makes."""
PREPARATIONS = [(224, 224, "crop"), (336, 336, "pad"), (20, 31, "crop"), (49, 42, "pad")]
"""Size, crop and aspect. A crop that is larger than the size reaches beyond the picture."""


def generate(width: int, height: int) -> Image.Image:
    """A picture whose neighbouring values have nothing in common, so that another order of two
    steps, or another rounding, shows in many of them. It is the same with any NumPy."""
    y, x, channel = np.indices((height, width, 3), dtype=np.uint32)
    values = x * np.uint32(2654435761) + y * np.uint32(2246822519) + channel * np.uint32(3266489917)
    values = (values ^ (values >> np.uint32(15))) * np.uint32(2246822519)
    return Image.fromarray((values >> np.uint32(24)).astype(np.uint8))


def digest(pixels: np.ndarray) -> str:
    """SHA-256 of float32 pixel values [3, S, S]: equal only where every bit is."""
    return hashlib.sha256(np.ascontiguousarray(pixels, dtype="<f4").tobytes()).hexdigest()


WARPERS: dict[str, dict[str, Any]] = {
    "penalty": {"repetition_penalty": 1.3},
    "reward": {"repetition_penalty": 0.7},
    "temperature": {"temperature": 0.4},
    "top_k": {"temperature": 1.0, "top_k": 5},
    "top_p": {"temperature": 1.0, "top_p": 0.8},
    "tiny_top_p": {"temperature": 1.0, "top_p": 0.01},
    "all": {"repetition_penalty": 1.4, "temperature": 0.8, "top_k": 12, "top_p": 0.7},
}
"""Options of `GenerationConfig`."""
PENALTY = 1.3
"""Of the recorded greedy tokens."""
