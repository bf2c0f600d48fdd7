"""Held-out accuracy of the shipped files, at all tokens and at an eighth of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.check_clip import (
    BUDGET,
    SEEN,
    embed_questions,
    guided_choice,
    oracle_choice,
    see,
    visual_choice,
)
from training.export import load_exported
from training.model import PATCHES, Llava
from training.packing import TurnEncoder, pack_apart, pack_conversation, right_turns
from training.scenes import Question, make_scene, questions
from training.train_llava import turn_logits

CHUNK = 32
CONVERSATION = 4
Item = tuple[int, Question]


@torch.no_grad()
def answered(
    llava: Llava,
    encoder: TurnEncoder,
    features: Tensor,
    items: list[Item],
    choose: Callable[[Item], Tensor],
) -> list[bool]:
    """Whether each question is answered exactly, from the chosen patches of its picture."""
    results: list[bool] = []
    for first in range(0, len(items), CHUNK):
        some = items[first : first + CHUNK]
        visual = torch.stack([features[item[0]][choose(item)] for item in some])
        turns = [[encoder.encode(q.question, q.answer, True)] for _, q in some]
        pack = pack_apart(turns, len(encoder.prefix) + visual.shape[1])
        logits = turn_logits(llava, encoder.prefix, visual, pack)
        results += right_turns(logits, pack, 1)[:, 0].tolist()
    return results


def _shares(items: list[Item], right: list[bool]) -> dict[str, float]:
    kinds = sorted({question.kind for _, question in items})
    table = {"all": float(np.mean(right))}
    for kind in kinds:
        table[kind] = float(
            np.mean(
                [
                    ok
                    for ok, (_, question) in zip(right, items, strict=True)
                    if question.kind == kind
                ]
            )
        )
    return {name: round(value, 4) for name, value in table.items()}


@torch.no_grad()
def conversations_right(
    llava: Llava, encoder: TurnEncoder, features: Tensor, asked: list[list[Question]]
) -> float:
    """Share of right answers in multi-turn conversations over all tokens, true answers so far."""
    results: list[Tensor] = []
    for first in range(0, len(asked), CHUNK):
        visual = features[first : first + CHUNK]
        turns = [
            [encoder.encode(q.question, q.answer, number == 0) for number, q in enumerate(some)]
            for some in asked[first : first + CHUNK]
        ]
        pack = pack_conversation(turns, len(encoder.prefix) + visual.shape[1])
        logits = turn_logits(llava, encoder.prefix, visual, pack)
        results.append(right_turns(logits, pack, CONVERSATION))
    return round(torch.cat(results).float().mean().item(), 4)


def evaluate(
    root: Path, pictures: int, objects: int | None = None, first_seed: int = 100_000
) -> dict[str, object]:
    """Numbers per way of choosing tokens and kind of question."""
    clip, llava, clip_tokenizer, llava_tokenizer = load_exported(root)
    scenes = [make_scene(first_seed + number, objects, True) for number in range(pictures)]
    features, joint, attention = see(clip, scenes)
    items = [(number, q) for number, scene in enumerate(scenes) for q in questions(scene)]
    texts = embed_questions(clip, clip_tokenizer, [q.question for _, q in items])
    encoder = TurnEncoder(llava_tokenizer)
    everything = torch.arange(PATCHES)

    def by_guide(item: Item) -> Tensor:
        return guided_choice(attention[item[0]], joint[item[0]] @ texts[item[1].question])

    ways: dict[str, Callable[[Item], Tensor]] = {
        f"all {PATCHES} tokens": lambda item: everything,
        f"oracle {BUDGET} tokens": lambda item: oracle_choice(
            scenes[item[0]], item[1].target, item[0]
        ),
        f"class attention {BUDGET} tokens": lambda item: visual_choice(attention[item[0]]),
        f"half class attention, half question, {BUDGET} tokens": by_guide,
    }

    def dropped(item: Item) -> bool:
        if item[1].target is None:
            return False
        patches = scenes[item[0]].patches(item[1].target)
        kept = np.isin(patches, visual_choice(attention[item[0]]).numpy()).sum()
        return bool(kept < SEEN * len(patches))

    lost = [dropped(item) for item in items]
    tables: dict[str, object] = {}
    for name, choose in tqdm(ways.items()):
        right = answered(llava, encoder, features, items, choose)
        table = _shares(items, right)
        hit = [ok for ok, gone in zip(right, lost, strict=True) if gone]
        table["object dropped by class attention"] = round(float(np.mean(hit)), 4) if hit else -1
        tables[name] = table
    rng = np.random.default_rng(0)
    asked = [
        [q[n] for n in rng.integers(len(q), size=CONVERSATION)] for q in map(questions, scenes)
    ]
    return {
        "pictures": pictures,
        "questions": len(items),
        "questions whose object class attention drops": sum(lost),
        "accuracy": tables,
        f"accuracy in conversations of {CONVERSATION} turns": conversations_right(
            llava, encoder, features, asked
        ),
    }


def write_report(path: Path, part: str, numbers: object) -> None:
    """Puts one part of the report into the file, keeping the others."""
    report = json.loads(path.read_text()) if path.exists() else {}
    report[part] = numbers
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
