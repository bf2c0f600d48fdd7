"""Questions about held-out scenes of the demo's world, put to a model in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from rich.progress import Progress

from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.types import Answer
from paddle_recomp.vlm.answering import VisualPrompt
from paddle_recomp.vlm.front_end import SeenImage
from paddle_recomp.vlm.vlm import VLM
from training.scenes import Question, Scene, make_scene, questions

FIRST_SEED = 500_000
"""Neither training nor the training's own evaluation draws scenes from here on."""
QUESTIONS_PER_SCENE = 8
SHORT = GenerationConfig(max_new_tokens=8)
"""The expected answers are a word or two."""


@dataclass(frozen=True)
class Item:
    """A question about a scene."""

    scene: Scene
    number: int
    """The number of the scene."""
    question: Question


def draw_items(scenes: int) -> list[Item]:
    """Questions of held-out scenes (other digit images, other seeds than in training)."""
    items = []
    for number in range(scenes):
        scene = make_scene(FIRST_SEED + number, held_out=True)
        rng = np.random.default_rng(number)
        everything = questions(scene)
        chosen = rng.permutation(len(everything))[:QUESTIONS_PER_SCENE]
        items += [Item(scene, number, everything[i]) for i in chosen]
    return items


def is_right(item: Item, answer: Answer) -> bool:
    """Whether the answer is exactly the expected text."""
    return answer.text == item.question.answer


class Evaluation:
    """A model and the questions for it; it sees each scene once for all budgets."""

    def __init__(
        self, vlm: VLM, items: Sequence[Item], batch: int, one_by_one: bool = False
    ) -> None:
        """With `one_by_one` only the language model gets batches: in an encoder with dynamic ranges
        a picture's tokens depend on its neighbours in a batch, and a user's picture has none."""
        self.vlm, self.items, self.batch, self.one_by_one = vlm, items, batch, one_by_one
        self._seen: dict[int, SeenImage] = {}

    def answers(
        self, budgets: Sequence[TokenBudget], progress: Progress, name: str
    ) -> Iterator[Answer]:
        """The answer to each item with its budget, in order."""
        task = progress.add_task(name, total=len(self.items))
        for start in range(0, len(self.items), self.batch):
            items = self.items[start : start + self.batch]
            prompts = self._prompts(items, budgets[start : start + self.batch])
            yield from self.vlm.answer(prompts, SHORT)
            progress.advance(task, len(items))
        progress.remove_task(task)

    def _prompts(self, items: Sequence[Item], budgets: Sequence[TokenBudget]) -> list[VisualPrompt]:
        self._see(items)
        images = [self._seen[item.number] for item in items]
        asked = [item.question.question for item in items]
        size = 1 if self.one_by_one else len(items)
        prompts = []
        for i in range(0, len(items), size):
            part = slice(i, i + size)
            prompts += self.vlm.compress(images[part], asked[part], budgets[part])
        return prompts

    def _see(self, items: Sequence[Item]) -> None:
        scenes = {item.number: item.scene for item in items if item.number not in self._seen}
        numbers, size = list(scenes), 1 if self.one_by_one else max(len(scenes), 1)
        for i in range(0, len(numbers), size):
            part = numbers[i : i + size]
            pictures = [Image.fromarray(scenes[number].image) for number in part]
            self._seen.update(zip(part, self.vlm.front_end.see(pictures), strict=True))
