"""Held-out check of the CLIP part, with the real question sentences."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from training.clip_data import IGNORE, patch_classes, text_ids, to_pixels
from training.model import Clip
from training.scenes import Question, Scene, make_scene, questions
from training.train_clip import ClipTrainer

BUDGET = 32  # an eighth of the 256 patches
TITLES = ("name", "color", "place")
SEEN = 0.5  # an object counts as kept from this share of its patches on


@torch.no_grad()
def see(clip: Clip, scenes: list[Scene], chunk: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden state -2 [B, N, C], joint patch embeddings [B, N, P], class attention [B, N]."""
    features, joint, attention = [], [], []
    for first in range(0, len(scenes), chunk):
        images = np.stack([scene.image for scene in scenes[first : first + chunk]])
        second_last, last = clip.vision_model(to_pixels(torch.from_numpy(images)))
        features.append(second_last[:, 1:])
        joint.append(clip.embed_states(last)[:, 1:])
        attention.append(clip.vision_model.class_attention(second_last))
    return torch.cat(features), torch.cat(joint), torch.cat(attention)


@torch.no_grad()
def embed_questions(clip: Clip, tokenizer: Tokenizer, texts: list[str]) -> dict[str, Tensor]:
    """Unit vectors [P] by question sentence."""
    unique = sorted(set(texts))
    return dict(zip(unique, clip.embed_text(text_ids(tokenizer, unique)), strict=True))


def visual_choice(attention: Tensor, budget: int = BUDGET) -> Tensor:
    """Patches with the most class attention, ascending, [budget]."""
    return attention.topk(budget).indices.sort().values


def guided_choice(attention: Tensor, similarity: Tensor, budget: int = BUDGET) -> Tensor:
    """Half by class attention, half by similarity to the question among the rest, [budget]."""
    first = attention.topk(budget // 2).indices
    rest = similarity.clone()
    rest[first] = -torch.inf
    return torch.cat([first, rest.topk(budget - len(first)).indices]).sort().values


def oracle_choice(scene: Scene, target: int | None, seed: int, budget: int = BUDGET) -> Tensor:
    """Patches of the asked object (of all objects for a count) and random others, [budget]."""
    rng = np.random.default_rng([3, seed])
    wanted = [target] if target is not None else list(range(len(scene.objects)))
    share = budget // len(wanted)
    kept: list[int] = []
    for number in wanted:
        kept += list(rng.permutation(scene.patches(number)))[:share]
    others = rng.permutation(np.setdiff1d(np.arange(len(scene.labels)), kept))
    return torch.from_numpy(np.sort(np.concatenate([kept, others[: budget - len(kept)]])))


def check_clip(trainer: ClipTrainer, tokenizer: Tokenizer, pictures: int) -> dict[str, float]:
    """Accuracy of the patch heads, retrieval by question, and what 32 patches keep."""
    trainer.eval()
    scenes = [make_scene(seed, held_out=True) for seed in range(pictures)]
    features, joint, attention = see(trainer.clip, scenes)
    asked: list[list[Question]] = [questions(scene) for scene in scenes]
    texts = embed_questions(
        trainer.clip, tokenizer, [question.question for some in asked for question in some]
    )
    hits: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        hits.setdefault(name, []).append(value)

    heads = (trainer.name_head, trainer.color_head, trainer.place_head)
    for number, scene in enumerate(scenes):
        on_object = torch.from_numpy(scene.labels >= 0)
        note("object share of area", on_object.float().mean().item())
        share = attention[number][on_object].sum() / attention[number].sum()
        note("object share of class attention", share.item())
        for title, head, target in zip(TITLES, heads, patch_classes(scene), strict=True):
            with torch.no_grad():
                scores = head(features[number]).float()
            for thing in range(len(scene.objects)):
                patches = scene.patches(thing)
                truth = int(target[patches[0]]) if len(patches) else IGNORE
                if truth != IGNORE:
                    vote = functional.log_softmax(scores[patches], -1).mean(0).argmax().item()
                    note(f"{title} accuracy per object", float(vote == truth))
        by_attention = visual_choice(attention[number])
        for question in asked[number]:
            if question.target is None:
                continue
            patches = torch.from_numpy(scene.patches(question.target))
            similarity = joint[number] @ texts[question.question]
            truth_mask = torch.zeros(len(similarity)).index_fill(0, patches, 1.0)
            top = similarity.topk(len(patches)).indices
            note(f"retrieval AUC {question.kind}", float(roc_auc_score(truth_mask, similarity)))
            note(f"retrieval precision {question.kind}", truth_mask[top].mean().item())
            guided = guided_choice(attention[number], similarity)
            for title, choice in (("class attention", by_attention), ("guided", guided)):
                kept = truth_mask[choice].sum() >= SEEN * len(patches)
                note(f"kept by {title}", float(kept))
    return {name: round(float(np.mean(values)), 4) for name, values in sorted(hits.items())}
