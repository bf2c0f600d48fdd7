"""What a language model is given to read, noted down; and what it should have been given."""

from __future__ import annotations

import numpy as np

from paddle_recomp.llm.base import LanguageModel, State
from paddle_recomp.preprocess import IMAGE_TOKEN, Turn
from paddle_recomp.vlm.vlm import VLM


class Recording:
    """A language model that notes what it reads, and the logits that it gives."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.read: list[np.ndarray] = []
        self.logits: list[np.ndarray] = []
        self.state: State | None = None
        self.fails_at: int | None = None

    @property
    def context(self) -> int:
        return self.model.context

    def embed(self, ids: np.ndarray) -> np.ndarray:
        return self.model.embed(ids)

    def prefill(
        self, embeds: np.ndarray, lengths: np.ndarray, capacity: int | None = None
    ) -> tuple[np.ndarray, State]:
        self.read = []
        return self._note(embeds, self.model.prefill(embeds, lengths, capacity))

    def extend(
        self, embeds: np.ndarray, lengths: np.ndarray, state: State
    ) -> tuple[np.ndarray, State]:
        return self._note(embeds, self.model.extend(embeds, lengths, state))

    def decode(self, ids: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        if len(self.logits) == self.fails_at:
            state.spend(state.owner)
            raise KeyboardInterrupt
        return self._note(self.embed(ids)[:, None], self.model.decode(ids, state))

    def rewind(self, state: State, lengths: np.ndarray) -> State:
        return self.model.rewind(state, lengths)

    def _note(
        self, embeds: np.ndarray, given: tuple[np.ndarray, State]
    ) -> tuple[np.ndarray, State]:
        self.read.append(embeds[0])
        self.logits.append(given[0])
        self.state = given[1]
        return given


def embeddings(vlm: VLM, turns: list[Turn], blocks: list[np.ndarray]) -> np.ndarray:
    """[T, D] of a whole dialogue, piece by piece between the pictures."""
    words: list[int] = []
    left, parts = iter(blocks), []
    for number in [*vlm.answerer.encode(turns), None]:
        if number is None or number == IMAGE_TOKEN:
            parts.append(vlm.answerer.model.embed(np.array(words, dtype=np.int64)))
            parts += [next(left)] if number == IMAGE_TOKEN else []
            words = []
        else:
            words.append(number)
    assert next(left, None) is None
    return np.concatenate(parts)
