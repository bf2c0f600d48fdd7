"""Records the golden cases of compression methods: `python -m tests.golden.methods.record NAME`.

The inputs are random numbers in which a few patches stand out; four pictures have four budgets: the
filter's own number, a cap, an exact number, everything. The outputs come from the loops beside this
file, which share no code with the library."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(__file__).parent
PATCHES, WIDTH, JOINT, LANGUAGE = 49, 12, 8, 10
BOUNDS = ((1, PATCHES), (1, 9), (12, 12), (PATCHES, PATCHES))


@dataclass(frozen=True)
class Picture:
    """One compressed picture, as lists: the fields of `Compressed` without padding."""

    tokens: list[np.ndarray]
    index: list[int]
    stage: list[int]
    owner: list[int]
    centre: list[int]


Loop = Callable[[Mapping[str, np.ndarray], tuple[int, int]], Picture]
"""(inputs of one picture, least and most tokens) -> the picture."""


class Expected(NamedTuple):
    """A method once more."""

    loop: Loop
    options: Mapping[str, Any]
    """What the loop assumes of the method's options."""
    source: str
    """The description that it was written from."""


def loops() -> dict[str, Expected]:
    """Every method that a sibling file has once more, by name."""
    found: dict[str, Expected] = {}
    for file in pkgutil.iter_modules([str(FOLDER)]):
        module = importlib.import_module(f"{__package__}.{file.name}")
        found |= getattr(module, "EXPECTED", {})
    return found


def inputs(seed: int) -> dict[str, np.ndarray]:
    """Everything that a method may read, for four pictures."""
    rng, batch = np.random.default_rng(seed), len(BOUNDS)
    logits = rng.normal(size=(2, batch, PATCHES)) * 1.2
    scores = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    text = rng.normal(size=(batch, JOINT))
    related = rng.random((batch, PATCHES, 1)) < 0.12
    arrays = {
        "features": rng.normal(size=(batch, PATCHES, WIDTH)),
        "keys": rng.normal(size=(batch, PATCHES, WIDTH)),
        "visual_score": scores[0],
        "patch_embeds": rng.normal(size=(batch, PATCHES, JOINT)) + related * 2 * text[:, None],
        "layer_score": scores[1],
        "text_embeds": text,
    }
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def record(name: str, expected: Expected) -> None:
    """Writes NAME.npz."""
    given = inputs(seed=sum(name.encode()))
    pictures = [
        expected.loop({key: value[i].astype(np.float64) for key, value in given.items()}, bounds)
        for i, bounds in enumerate(BOUNDS)
    ]
    counts = np.array([len(one.tokens) for one in pictures])
    padded = {
        key: np.full((len(pictures), counts.max()), -1) for key in ("index", "stage", "centre")
    }
    tokens = np.zeros((len(pictures), counts.max(), WIDTH), np.float32)
    for i, one in enumerate(pictures):
        tokens[i, : counts[i]] = one.tokens
        for key, rows in padded.items():
            rows[i, : counts[i]] = getattr(one, key)
    np.savez_compressed(
        FOLDER / f"{name}.npz",
        source=np.array(expected.source),
        options=np.array(json.dumps(dict(expected.options))),
        bounds=np.array(BOUNDS),
        count=counts,
        tokens=tokens,
        owner=np.array([one.owner for one in pictures]),
        **padded,
        **{f"input_{key}": value for key, value in given.items()},
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or loops():
        record(name, loops()[name])
