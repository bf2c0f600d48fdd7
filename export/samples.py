"""The pictures and questions of an export: those that calibrate INT8, and those that evaluate it.
No picture, no part of one and no question is among both."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from PIL import Image

from paddle_recomp.errors import ConfigError, ImageNotFoundError, MissingDependencyError
from paddle_recomp.files import is_file
from paddle_recomp.preprocess import load_image

CALIBRATION_QUESTIONS = (
    "what is in the picture?",
    "what color is the largest object?",
    "where is the circle?",
    "how many digits are there?",
    "is there a person or an animal?",
    "what shape is on the left?",
    "what does the text say?",
    "what is in the background?",
)
"""They calibrate together with the questions of the shipped pictures."""
EVALUATION_QUESTIONS = (
    "what digit is green?",
    "what is the animal doing?",
    "where is the heart?",
    "what color is the star?",
    "what is next to the cup?",
    "what shape is orange?",
    "how many people can you see?",
    "is it day or night?",
)
CALIBRATION_PHOTOS = (
    "astronaut",
    "coffee",
    "chelsea",
    "rocket",
    "hubble_deep_field",
    "retina",
    "coins",
)
"""Pictures that scikit-image has in its package, without a download."""
EVALUATION_PHOTOS = (
    "brick",
    "camera",
    "cell",
    "clock_motion",
    "grass",
    "gravel",
    "horse",
    "ihc",
    "moon",
    "motorcycle_left",
    "page",
    "text",
)
"""Others of them."""

MOST_PICTURES = 32
"""The most pictures for calibration, because the float outputs of all of them are held in
memory."""


def load_pictures(folder: Path | None, count: int) -> list[Image.Image]:
    """The first pictures of a folder; by default those that evaluate. Where there are fewer than
    `count`, they come again.

    Raises: ImageNotFoundError when the folder has none; ImageError."""
    pictures = evaluation_pictures() if folder is None else _from_folder(folder)
    if not pictures:
        raise ImageNotFoundError(f"there is no picture in {folder}")
    return [pictures[i % len(pictures)] for i in range(count)]


def load_questions(count: int) -> list[str]:
    """The first of EVALUATION_QUESTIONS, and where they are too few, all over again."""
    return [EVALUATION_QUESTIONS[i % len(EVALUATION_QUESTIONS)] for i in range(count)]


def evaluation_pictures() -> list[Image.Image]:
    """Scenes of the demo's world, which are none of those that ship with the library.

    Raises: ImageError."""
    return _from_folder(Path(__file__).parent / "pictures")


def evaluation_photos() -> list[Image.Image]:
    """Photographs of scikit-image. Raises: MissingDependencyError, ImageError."""
    return _photos(EVALUATION_PHOTOS)


def calibration_pictures(folder: Path | None) -> list[Image.Image]:
    """Up to 32 pictures of a folder; by default the shipped ones, with those of scikit-image where
    it is installed: the demo's scenes alone would say little about photographs.

    Raises: ImageNotFoundError when there is none; ImageError."""
    if folder is None:
        pictures = _from_folder(_shipped())
        with contextlib.suppress(MissingDependencyError):
            pictures += _photos(CALIBRATION_PHOTOS)
    else:
        pictures = _from_folder(folder, MOST_PICTURES)
    if not pictures:
        raise ImageNotFoundError(f"there is no picture in {folder or _shipped()}")
    return pictures


def calibration_questions(path: Path | None) -> list[str]:
    """Different questions, one a line of a file; by default the shipped ones
    and CALIBRATION_QUESTIONS.

    Raises: ConfigError when the file cannot be read or has none."""
    if path is None:
        return list(dict.fromkeys([*_own_questions(), *CALIBRATION_QUESTIONS]))
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
    if not is_file(scenes):
        return []
    content = json.loads(scenes.read_text(encoding="utf-8"))
    return [asked["question"] for scene in content for asked in scene["questions"]]


def _from_folder(folder: Path, most: int = 16) -> list[Image.Image]:
    kinds = (".png", ".jpg", ".jpeg", ".webp")
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in kinds)
    return [load_image(path) for path in paths[:most]]


def _photos(names: Sequence[str]) -> list[Image.Image]:
    try:
        import skimage
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "the photographs are those of scikit-image: pip install scikit-image, or name a "
            "folder of others (--images DIR)"
        ) from error
    folder = Path(skimage.__file__).parent / "data"
    found = (path for name in names for path in sorted(folder.glob(f"{name}.*")))
    return [load_image(path) for path in found]
