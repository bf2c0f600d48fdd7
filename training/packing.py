"""Question-answer turns behind one picture: token ids, targets, positions and masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.phrases import corpus
from training.scenes import Question, make_scene, questions
from training.tokenizers_ import IMAGE

TURN_LENGTH = 16
NO_TARGET = -100
COUNT_SHARE = 0.2  # of the turns, where counting is possible at all


def prompt(question: str) -> str:
    """The published single-turn prompt."""
    return f"USER: {IMAGE}\n{question} ASSISTANT:"


def reword(question: str, rng: np.random.Generator) -> str:
    """The question as it is (mostly), or as somebody else might type it."""
    if rng.random() < 0.6:
        return question
    if question.startswith("what color is the ") and rng.random() < 0.5:
        question = question.replace("what color is the ", "what is the color of the ")
    elif question.startswith(("what digit", "what shape")) and rng.random() < 0.5:
        question = question.replace("what", "which", 1)
    elif question.startswith("how many") and rng.random() < 0.5:
        question = question.replace("are there", "do you see")
    if rng.random() < 0.5:
        question = question[0].upper() + question[1:]
    if rng.random() < 0.3:
        question = question.removesuffix("?")
    return question


def language_corpus() -> list[str]:
    """Texts from which the language model's tokenizer learns its merges."""
    rng = np.random.default_rng(5)
    texts = corpus()
    for seed in range(300):
        for question in questions(make_scene(seed)):
            texts.append(reword(question.question, rng))
            texts.append(f"USER: ASSISTANT: {question.answer} USER:")
    return texts


@dataclass(frozen=True)
class Turn:
    """Ids of a question with its answer; targets[i] is what position i should say next."""

    ids: list[int]
    targets: list[int]


class TurnEncoder:
    """Token ids of turns, as the whole prompt would be tokenised."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.image_id = tokenizer.token_to_id(IMAGE)
        self.end_id = tokenizer.token_to_id("</s>")
        whole = tokenizer.encode(prompt("what digit is red?")).ids
        self.prefix = whole[: whole.index(self.image_id)]

    def encode(self, question: str, answer: str, first: bool) -> Turn:
        """The first turn follows the picture, a later one follows an answer."""
        text = prompt(question) if first else f"USER: {question} ASSISTANT:"
        asked = self.tokenizer.encode(text).ids
        both = self.tokenizer.encode(f"{text} {answer}").ids
        skip = len(self.prefix) + 1 if first else 1
        said = both[len(asked) :]
        # The end of sequence is a target of the answer's last token, never an input: the
        # published chat template puts none between turns, and generation stops all the same.
        targets = [NO_TARGET] * (len(asked) - skip - 1) + said + [self.end_id]
        return Turn(both[skip:], targets)


@dataclass(frozen=True)
class Pack:
    """ids, targets [B, L] after the visual tokens; positions [P + L]; mask [P + L, P + L]."""

    ids: Tensor
    targets: Tensor
    turn: Tensor  # [B, L] number of the turn, -1 for padding
    positions: Tensor
    mask: Tensor


def pack_apart(turns: list[list[Turn]], before: int) -> Pack:
    """Every turn sees the picture and itself: each is exactly a single-turn conversation."""
    count = len(turns[0])
    length = count * TURN_LENGTH
    ids = torch.zeros(len(turns), length, dtype=torch.long)
    targets = torch.full((len(turns), length), NO_TARGET)
    for row, some in enumerate(turns):
        for number, turn in enumerate(some):
            start = number * TURN_LENGTH
            ids[row, start : start + len(turn.ids)] = torch.tensor(turn.ids)
            targets[row, start : start + len(turn.ids)] = torch.tensor(turn.targets)
    block = torch.arange(length) // TURN_LENGTH
    mask = torch.ones(before + length, before + length, dtype=torch.bool).tril()
    mask[before:, before:] &= block[:, None] == block[None, :]
    positions = torch.cat([torch.arange(before), before + torch.arange(length) % TURN_LENGTH])
    return Pack(ids, targets, block.expand(len(turns), -1), positions, mask)


def pack_conversation(turns: list[list[Turn]], before: int) -> Pack:
    """A plain multi-turn conversation: every turn sees all before it."""
    length = max(sum(len(turn.ids) for turn in some) for some in turns)
    ids = torch.zeros(len(turns), length, dtype=torch.long)
    targets = torch.full((len(turns), length), NO_TARGET)
    number = torch.full((len(turns), length), -1)
    for row, some in enumerate(turns):
        start = 0
        for place, turn in enumerate(some):
            end = start + len(turn.ids)
            ids[row, start:end] = torch.tensor(turn.ids)
            targets[row, start:end] = torch.tensor(turn.targets)
            number[row, start:end] = place
            start = end
    mask = torch.ones(before + length, before + length, dtype=torch.bool).tril()
    return Pack(ids, targets, number, torch.arange(before + length), mask)


def right_turns(logits: Tensor, pack: Pack, turns: int) -> Tensor:
    """logits [B, L, V] -> whether greedy decoding says exactly the answer and stops, [B, turns]."""
    wrong = (logits.argmax(-1) != pack.targets) & (pack.targets != NO_TARGET)
    return torch.stack([~(wrong & (pack.turn == number)).any(1) for number in range(turns)], dim=1)


def draw_questions(
    asked: list[Question], allowed: set[int], counts: bool, turns: int, rng: np.random.Generator
) -> list[Question]:
    """Random questions about the allowed objects, [turns]; counts only where they may be asked."""
    single = [q for q in asked if q.target in allowed]
    several = [q for q in asked if q.target is None] if counts else []
    chosen = []
    for _ in range(turns):
        pool = several if several and rng.random() < COUNT_SHARE else single
        chosen.append(pool[int(rng.integers(len(pool)))])
    return chosen
