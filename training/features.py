"""Hidden states of the frozen vision tower, computed once and kept in float16."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from training.check_clip import see
from training.clip_data import TRAIN_SEEDS
from training.model import PATCHES, VISION, Clip
from training.scenes import Scene, make_scene

COUNTS = tuple(range(2, 9))
CHUNK = 50


@dataclass(frozen=True)
class FeatureStore:
    """features [K, N, C] float16 and the K scenes they belong to, without their pictures."""

    features: npt.NDArray[np.float16]
    scenes: list[Scene]
    by_count: dict[int, list[int]]


def scene_plan(per_count: int) -> list[tuple[int, int]]:
    """(seed, objects) of every training scene of the language part."""
    first = 2 * TRAIN_SEEDS  # other scenes than those the vision tower was trained on
    return [
        (first + number * len(COUNTS) + place, count)
        for number in range(per_count)
        for place, count in enumerate(COUNTS)
    ]


def build_store(clip: Clip, folder: Path, per_count: int) -> FeatureStore:
    """Reads the store from the folder, or computes and writes it."""
    array_path, scene_path = folder / "features.npy", folder / "scenes.pkl"
    if not scene_path.exists():
        plan = scene_plan(per_count)
        shape = (len(plan), PATCHES, VISION.width)
        # Into memory first: the whole store is read at random during training anyway.
        features = np.empty(shape, np.float16)
        bare: list[Scene] = []
        for first in tqdm(range(0, len(plan), CHUNK), mininterval=10):
            scenes = [make_scene(seed, count) for seed, count in plan[first : first + CHUNK]]
            features[first : first + CHUNK] = see(clip, scenes)[0].numpy()
            nothing = np.empty(0, np.uint8)
            bare += [replace(scene, image=nothing) for scene in scenes]
        np.save(array_path, features)
        scene_path.write_bytes(pickle.dumps(bare))
    scenes = pickle.loads(scene_path.read_bytes())
    # A crowded picture may hold fewer objects than asked for, so count what is there.
    by_count: dict[int, list[int]] = {}
    for number, scene in enumerate(scenes):
        by_count.setdefault(len(scene.objects), []).append(number)
    return FeatureStore(np.load(array_path), scenes, by_count)


def feature_statistics(store: FeatureStore) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of every channel, [C] each."""
    sample = torch.from_numpy(
        store.features[:: max(1, len(store.scenes) // 500)].astype(np.float32)
    )
    return sample.mean((0, 1)), sample.std((0, 1)).clamp_min(1e-4)
