"""What was recorded: which pictures of scikit-image (file, box) are behind preprocess.npz, and
which ways to change a distribution behind sampling.npz."""

from typing import Any

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
