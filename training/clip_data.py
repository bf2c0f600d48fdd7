"""Batches for the CLIP part: pictures, per-patch labels, phrases and captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import IterableDataset

from training.phrases import caption, random_phrase, relevance
from training.scenes import COLORS, DIGITS, EDGE, SHAPES, Scene, make_scene
from training.tokenizers_ import CLIP_END

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
NAMES = (*DIGITS, *SHAPES)
PLACES = tuple(
    " ".join(filter(None, (row, column))) or "center"
    for row in ("top", "", "bottom")
    for column in ("left", "", "right")
)
IGNORE = -100
TRAIN_SEEDS = 10_000_000  # training scenes start here; held-out scenes differ by their flag too


@dataclass(frozen=True)
class ClipBatch:
    """What one step needs.

    images [B, S, S, 3] uint8; names, colors, places [B, N]; glyphs [B, N, 64], NaN where there is
    none; relevance [B, N, T], NaN where undecided; token ids [T, L] and [B, L].
    """

    images: Tensor
    names: Tensor
    colors: Tensor
    places: Tensor
    glyphs: Tensor
    relevance: Tensor
    phrase_ids: Tensor
    caption_ids: Tensor


def to_pixels(images: Tensor) -> Tensor:
    """[B, S, S, 3] uint8 -> normalised [B, 3, S, S]."""
    scaled = images.float() / 255
    normal = (scaled - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    return normal.permute(0, 3, 1, 2).contiguous()


def text_ids(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Token ids [B, L], padded with the end-of-text id as CLIP does."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    end = tokenizer.token_to_id(CLIP_END)
    longest = max(map(len, rows))
    return torch.tensor([row + [end] * (longest - len(row)) for row in rows])


def patch_classes(scene: Scene) -> tuple[npt.NDArray[np.int64], ...]:
    """Name, color and place class of every patch, [256] each; the last class is background."""
    labels = scene.labels

    def table(values: list[int], background: int) -> npt.NDArray[np.int64]:
        return np.array([*values, IGNORE, background])[labels]

    names = [NAMES.index(thing.name) for thing in scene.objects]
    colors = [list(COLORS).index(thing.color) for thing in scene.objects]
    places = [
        PLACES.index(thing.place) if thing.place_is_clear else IGNORE for thing in scene.objects
    ]
    assert EDGE == -2
    return table(names, len(NAMES)), table(colors, len(COLORS)), table(places, IGNORE)


def patch_glyphs(scene: Scene) -> npt.NDArray[np.float32]:
    """The coarse drawing of the object on every patch, NaN where there is none, [256, 64]."""
    drawings = scene.glyphs.reshape(len(scene.objects), -1)
    nothing = np.full((2, drawings.shape[1]), np.nan, np.float32)
    return np.concatenate([drawings, nothing])[scene.labels]


class ClipBatches(IterableDataset[ClipBatch]):
    """Endless training batches from a given step on; the same step is the same batch."""

    def __init__(self, tokenizer: Tokenizer, first_step: int, pictures: int, phrases: int) -> None:
        self.tokenizer = tokenizer
        self.first_step = first_step
        self.pictures = pictures
        self.phrases = phrases

    def batch(self, step: int) -> ClipBatch:
        """The batch of one step."""
        rng = np.random.default_rng([7, step])
        first = TRAIN_SEEDS + step * self.pictures
        # Crowded scenes teach more per picture; the usual ones keep the usual mix in view.
        crowds = [
            int(rng.integers(5, 9)) if rng.random() < 0.75 else None for _ in range(self.pictures)
        ]
        scenes = [make_scene(first + number, crowd) for number, crowd in enumerate(crowds)]
        phrases = [random_phrase(rng) for _ in range(self.phrases)]
        classes = [patch_classes(scene) for scene in scenes]
        names, colors, places = (
            torch.from_numpy(np.stack(rows)) for rows in zip(*classes, strict=True)
        )
        speaks_of = np.stack(
            [np.stack([relevance(phrase, scene) for phrase in phrases], -1) for scene in scenes]
        )
        return ClipBatch(
            images=torch.from_numpy(np.stack([scene.image for scene in scenes])),
            names=names,
            colors=colors,
            places=places,
            glyphs=torch.from_numpy(np.stack([patch_glyphs(scene) for scene in scenes])),
            relevance=torch.from_numpy(speaks_of),
            phrase_ids=text_ids(self.tokenizer, [phrase.text for phrase in phrases]),
            caption_ids=text_ids(self.tokenizer, [caption(scene, rng) for scene in scenes]),
        )

    def __iter__(self) -> Iterator[ClipBatch]:
        step = self.first_step
        while True:
            yield self.batch(step)
            step += 1
