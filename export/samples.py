"""Real pictures and questions to compare on."""

from __future__ import annotations

import contextlib
import json
from importlib import resources
from pathlib import Path

from PIL import Image

from paddle_recomp.errors import ConfigError, ImageNotFoundError, MissingDependencyError
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

MOST_PICTURES = 32
"""The most pictures for calibration, because the float outputs of all of them are held in
memory."""
_PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina", "coins")
"""Pictures that scikit-image has in its package, without a download."""


def load_pictures(folder: Path | None, count: int) -> list[Image.Image]:
    """The first pictures of a folder; by default those of the demo, or else of scikit-image.
    Where there are fewer than `count`, they come again.

    Raises: ImageNotFoundError when the folder has none; ImageError; MissingDependencyError."""
    pictures = _from_folder(_shipped()) or _photos() if folder is None else _from_folder(folder)
    if not pictures:
        raise ImageNotFoundError(f"there is no picture in {folder}")
    return [pictures[i % len(pictures)] for i in range(count)]


def load_questions(count: int) -> list[str]:
    """Different questions, first the demo's own."""
    questions = list(dict.fromkeys([*_own_questions()[: count // 2], *QUESTIONS]))
    return [questions[i % len(questions)] for i in range(count)]


def calibration_pictures(folder: Path | None) -> list[Image.Image]:
    """Up to 32 pictures of a folder; by default the shipped ones, with those of scikit-image where
    it is installed: the demo's scenes alone would say little about photographs.

    Raises: ImageNotFoundError when there is none; ImageError."""
    if folder is None:
        pictures = _from_folder(_shipped())
        with contextlib.suppress(MissingDependencyError):
            pictures += _photos()
    else:
        pictures = _from_folder(folder, MOST_PICTURES)
    if not pictures:
        raise ImageNotFoundError(f"there is no picture in {folder or _shipped()}")
    return pictures


def calibration_questions(path: Path | None) -> list[str]:
    """Different questions, one a line of a file; by default the shipped ones and QUESTIONS.

    Raises: ConfigError when the file cannot be read or has none."""
    if path is None:
        return list(dict.fromkeys([*_own_questions(), *QUESTIONS]))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"{path} cannot be read: {reason}") from error
    questions = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not questions:
        raise ConfigError(f"there is no question in {path}")
    return questions


def shipped_picture() -> Path:
    """The file of one of the demo's pictures."""
    return _shipped() / "scene_0.png"


def _shipped() -> Path:
    return Path(str(resources.files("paddle_recomp"))) / "assets" / "pictures"


def _own_questions() -> list[str]:
    scenes = _shipped() / "scenes.json"
    if not scenes.is_file():
        return []
    content = json.loads(scenes.read_text(encoding="utf-8"))
    return [asked["question"] for scene in content for asked in scene["questions"]]


def _from_folder(folder: Path, most: int = 16) -> list[Image.Image]:
    kinds = (".png", ".jpg", ".jpeg", ".webp")
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in kinds)
    return [load_image(path) for path in paths[:most]]


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
