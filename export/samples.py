"""Real pictures and questions to compare on."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from PIL import Image

from paddle_recomp.errors import ImageNotFoundError, MissingDependencyError
from paddle_recomp.preprocess import load_image

QUESTIONS = (
    "what is in the picture?",
    "what color is the largest object?",
    "where is the circle?",
    "how many digits are there?",
    "is there a person or an animal?",
    "what shape is on the left?",
    "what does the text say?",
    "what is in the background?",
)

_PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina", "coins")
"""Pictures that scikit-image has in its package, without a download."""


def load_pictures(folder: Path | None, count: int) -> list[Image.Image]:
    """The first pictures of a folder; by default those of the demo, or else of scikit-image.
    Where there are fewer than `count`, they come again.

    Raises: ImageNotFoundError when the folder has none; ImageError; MissingDependencyError."""
    if folder is None:
        shipped = Path(str(resources.files("paddle_recomp"))) / "assets" / "pictures"
        pictures = _from_folder(shipped) or _photos()
    else:
        pictures = _from_folder(folder)
    if not pictures:
        raise ImageNotFoundError(f"there is no picture in {folder}")
    return [pictures[i % len(pictures)] for i in range(count)]


def load_questions(count: int) -> list[str]:
    """Different questions; of the demo's own where they are there."""
    scenes = Path(str(resources.files("paddle_recomp"))) / "assets" / "pictures" / "scenes.json"
    own: list[str] = []
    if scenes.is_file():
        content = json.loads(scenes.read_text(encoding="utf-8"))
        own = [asked["question"] for scene in content for asked in scene["questions"]]
    questions = list(dict.fromkeys([*own[: count // 2], *QUESTIONS]))
    return [questions[i % len(questions)] for i in range(count)]


def _from_folder(folder: Path) -> list[Image.Image]:
    kinds = (".png", ".jpg", ".jpeg", ".webp")
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in kinds)
    return [load_image(path) for path in paths[:16]]


def _photos() -> list[Image.Image]:
    try:
        import skimage
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "there are no pictures to compare on: name a folder of some (--images DIR), or "
            "pip install scikit-image, which brings some"
        ) from error
    folder = Path(skimage.__file__).parent / "data"
    found = (path for name in _PHOTOS for path in sorted(folder.glob(f"{name}.*")))
    return [load_image(path) for path in found]
