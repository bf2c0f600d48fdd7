"""A few held-out scenes as PNG files with questions and expected answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from training.check_clip import see
from training.evaluate import Item, answered
from training.export import load_exported
from training.model import PATCHES
from training.packing import TurnEncoder
from training.scenes import BACKGROUNDS, Question, Scene, make_scene, questions

FIRST_SEED = 900_000
OBJECTS = (3, 4, 5, 6, 6, 7)
QUESTIONS = 4
TRIES = 400


def _asked(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One question per object and kind at most, then one count, [QUESTIONS]."""
    chosen: list[Question] = []
    everything = questions(scene)
    for number in rng.permutation(len(everything)):
        question = everything[number]
        fresh = all(
            question.kind != old.kind and (question.target is None or question.target != old.target)
            for old in chosen
        )
        if fresh and len(chosen) < QUESTIONS - (question.target is not None):
            chosen.append(question)
    return chosen


def _all_patches(item: Item) -> torch.Tensor:
    """Every patch of the picture, [256]."""
    return torch.arange(PATCHES)


def _wanted(scene: Scene, objects: int, background: str) -> bool:
    """Both kinds of thing on the asked background, some bold and some faint."""
    salience = [thing.salience for thing in scene.objects]
    return (
        len(scene.objects) == objects
        and scene.background == background
        and len({thing.kind for thing in scene.objects}) == 2
        and max(salience) > 0.7
        and min(salience) < 0.4
    )


def write_pictures(root: Path, folder: Path) -> list[int]:
    """Writes scene_N.png and scenes.json; every answer is one that the model gets right."""
    clip, llava, _, tokenizer = load_exported(root)
    encoder = TurnEncoder(tokenizer)
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, object]] = []
    seeds: list[int] = []
    for number, objects in enumerate(OBJECTS):
        background = BACKGROUNDS[number % len(BACKGROUNDS)]
        for seed in range(FIRST_SEED + number * TRIES, FIRST_SEED + (number + 1) * TRIES):
            scene = make_scene(seed, objects, held_out=True)
            if not _wanted(scene, objects, background):
                continue
            asked = _asked(scene, rng)
            features = see(clip, [scene])[0]
            items = [(0, question) for question in asked]
            if all(answered(llava, encoder, features, items, _all_patches)):
                break
        else:
            raise RuntimeError(f"no fitting scene with {objects} objects")
        name = f"scene_{number}.png"
        Image.fromarray(scene.image).save(folder / name, optimize=True)
        seeds.append(seed)
        entries.append(
            {
                "file": name,
                "seed": seed,
                "background": background,
                "objects": [
                    {"kind": t.kind, "name": t.name, "color": t.color, "box": list(t.box)}
                    for t in scene.objects
                ],
                "questions": [
                    {"question": q.question, "answer": q.answer, "object": q.target} for q in asked
                ],
            }
        )
    (folder / "scenes.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    return seeds
