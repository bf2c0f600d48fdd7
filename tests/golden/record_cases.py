"""Which pictures of scikit-image (file, box) preprocess.npz was recorded from."""

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
