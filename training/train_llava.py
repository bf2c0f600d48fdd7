"""Trains projector and language model on cached features: curriculum, token drop, packed turns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from training.features import COUNTS, FeatureStore, feature_statistics
from training.model import PATCHES, Llava
from training.optimizers import make_optimizers
from training.packing import (
    NO_TARGET,
    Pack,
    TurnEncoder,
    draw_questions,
    pack_apart,
    pack_conversation,
    reword,
    right_turns,
)
from training.scenes import Scene, questions

PICTURES, TURNS = 32, 8
PEAK_RATE, WARMUP, WEIGHT_DECAY = 2e-3, 100, 0.05
NEXT_LEVEL = 0.85
SAVE_EVERY = 100


@dataclass
class Curriculum:
    """How many objects the scenes have by now, and the running accuracy at this level."""

    level: int = COUNTS[0]
    accuracy: float = 0.0
    history: list[tuple[int, int]] = field(default_factory=list)

    def note(self, step: int, accuracy: float) -> None:
        """Adds one object when the running accuracy is high enough."""
        self.accuracy = 0.95 * self.accuracy + 0.05 * accuracy
        if self.accuracy > NEXT_LEVEL and self.level < COUNTS[-1]:
            self.level += 1
            self.accuracy = 0.6
            self.history.append((step, self.level))


def keep_patches(
    scene: Scene, asked: set[int], budget: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """A good part of the asked objects' patches and random others, ascending, [budget].

    Half of the time the others are patches of objects before those of the background: whoever
    keeps few tokens keeps what stands out, and a count must not be read off the share of the
    picture that objects take."""
    kept: list[int] = []
    share = budget // max(1, len(asked))
    for number in asked:
        patches = rng.permutation(scene.patches(number))
        kept += list(patches[: max(1, min(share, round(len(patches) * rng.uniform(0.6, 1))))])
    others = rng.permutation(np.setdiff1d(np.arange(PATCHES), kept))
    if rng.random() < 0.5:
        others = others[np.argsort(scene.labels[others] < 0, kind="stable")]
    return np.sort(np.concatenate([kept, others[: budget - len(kept)]])).astype(np.int64)


def merged_tokens(features: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Weighted means of random groups of patches, [B, N, C] -> [B, count, C]."""
    weights = torch.from_numpy(rng.random((len(features), count, PATCHES), dtype=np.float32))
    weights *= weights > rng.uniform(0.8, 0.97)
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-6) @ features


class Batches:
    """Training batches of the language part."""

    def __init__(self, store: FeatureStore, encoder: TurnEncoder) -> None:
        self.store = store
        self.encoder = encoder

    def _pictures(self, level: int, rng: np.random.Generator) -> list[int]:
        chosen = []
        for _ in range(PICTURES):
            count = level if rng.random() < 0.5 else int(rng.integers(COUNTS[0], level + 1))
            pool = self.store.by_count[count]
            chosen.append(pool[int(rng.integers(len(pool)))])
        return chosen

    def batch(self, step: int, level: int) -> tuple[Tensor, Pack]:
        """Visual features [B, M, C] and the packed turns behind them."""
        rng = np.random.default_rng([11, step])
        rows = self._pictures(level, rng)
        drop = rng.random() < (0.6 if level > COUNTS[0] + 1 else 0.9)
        budget = int(PATCHES * rng.uniform(0.06, 1.0 if level > 4 else 0.3)) if drop else PATCHES
        apart = rng.random() < 0.7
        visual, packs = [], []
        for row in rows:
            scene = self.store.scenes[row]
            objects = rng.permutation(len(scene.objects))
            allowed = {int(v) for v in objects[: max(1, budget // 8)]}
            counts = budget // 4 >= len(scene.objects)
            asked = draw_questions(questions(scene), allowed, counts, TURNS, rng)
            packs.append(
                [
                    self.encoder.encode(reword(q.question, rng), q.answer, apart or number == 0)
                    for number, q in enumerate(asked)
                ]
            )
            needed = {q.target for q in asked if q.target is not None}
            if any(q.target is None for q in asked):
                needed = set(range(len(scene.objects)))
            features = self.store.features[row].astype(np.float32)
            whole = torch.from_numpy(features)
            if drop:
                whole = whole[torch.from_numpy(keep_patches(scene, needed, budget, rng))]
            visual.append(whole)
        tokens = torch.stack(visual)
        if drop and rng.random() < 0.4:
            everything = torch.from_numpy(self.store.features[np.array(rows)].astype(np.float32))
            extra = merged_tokens(everything, int(rng.integers(1, 6)), rng)
            tokens = torch.cat([tokens, extra], 1)
        before = len(self.encoder.prefix) + tokens.shape[1]
        return tokens, (pack_apart if apart else pack_conversation)(packs, before)


def turn_logits(model: Llava, prefix: list[int], visual: Tensor, pack: Pack) -> Tensor:
    """Logits of the positions behind the picture, [B, L, V]."""
    embed = model.language_model.model.embed_tokens
    start = embed(torch.tensor(prefix)).expand(len(visual), -1, -1)
    projected = model.project(visual)
    embeds = torch.cat(
        [start.to(projected.dtype), projected, embed(pack.ids).to(projected.dtype)], 1
    )
    states = model.language_model.model(embeds, pack.positions, pack.mask)
    return model.language_model.lm_head(states[:, -pack.ids.shape[1] :]).float()


def rate_at(step: int, steps: int) -> float:
    """Learning rate: warm-up, flat for half of the way (the curriculum), then cosine to zero."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    late = max(0.0, (step - steps / 2) / (steps / 2))
    return PEAK_RATE * 0.5 * (1 + math.cos(math.pi * late))


def train_llava(
    store: FeatureStore, tokenizer: Tokenizer, vocabulary: int, checkpoint: Path, steps: int
) -> Llava:
    """Trains up to `steps` in all, going on from the checkpoint where there is one."""
    torch.manual_seed(1)
    model = Llava(vocabulary)
    model.feature_mean, model.feature_std = feature_statistics(store)
    optimizers = make_optimizers(model, PEAK_RATE, WEIGHT_DECAY)
    curriculum = Curriculum()
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        curriculum = Curriculum(**state["curriculum"])
        start = state["step"]
    encoder = TurnEncoder(tokenizer)
    batches = Batches(store, encoder)
    running = 0.0
    progress = tqdm(range(start, steps), initial=start, total=steps, mininterval=10)
    for step in progress:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, steps)
        visual, pack = batches.batch(step, curriculum.level)
        with torch.autocast("cpu", torch.bfloat16):
            logits = turn_logits(model, encoder.prefix, visual, pack)
        loss = functional.cross_entropy(
            logits.flatten(0, 1), pack.targets.flatten(), ignore_index=NO_TARGET
        )
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        curriculum.note(step, right_turns(logits, pack, TURNS).float().mean().item())
        running = 0.97 * running + 0.03 * loss.item()
        progress.set_postfix(
            objects=curriculum.level, right=f"{curriculum.accuracy:.3f}", loss=f"{running:.3f}",
            refresh=False,
        )  # fmt: skip
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "curriculum": vars(curriculum),
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return model
