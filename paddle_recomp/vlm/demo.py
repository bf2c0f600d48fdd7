"""The embedded model and the pictures that ship with it: their names, folders and questions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

DEMO = "demo"
"""The embedded model: its bundle for commands that run a model, its checkpoint for those that need
a checkpoint."""
DEMO_CHECKPOINT = "demo-checkpoint"
"""Its checkpoint, for every command."""


@dataclass(frozen=True)
class DemoQuestion:
    """A question about a shipped picture, with the answer that the scene's maker knows."""

    picture: Path
    question: str
    expected: str


def demo_folder() -> Path:
    """The folder of the embedded model: `llava` and `clip` are its checkpoint."""
    return _assets() / "demo"


def demo_bundle_folder() -> Path:
    """The bundle that `make demo-bundle` exports from it."""
    return demo_folder() / "bundle"


def demo_pictures() -> dict[Path, list[DemoQuestion]]:
    """The shipped pictures with their questions, those with the most objects first."""
    folder = _assets() / "pictures"
    scenes = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    scenes.sort(key=lambda scene: -len(scene["objects"]))
    return {
        folder / scene["file"]: [
            DemoQuestion(folder / scene["file"], asked["question"], asked["answer"])
            for asked in scene["questions"]
        ]
        for scene in scenes
    }


def _assets() -> Path:
    return Path(str(resources.files("paddle_recomp"))) / "assets"
