"""A language model in the middle of a conversation."""

from __future__ import annotations

import numpy as np

from paddle_recomp.llm.base import LanguageModel, State


class Continued:
    """A `LanguageModel` whose prefill goes on behind a KV cache, and that keeps the latest state,
    so that whoever generates need not know of either. For one answer."""

    def __init__(self, model: LanguageModel, state: State | None = None) -> None:
        """Without a state the conversation begins here."""
        self.model, self.state = model, state

    @property
    def context(self) -> int:
        """See `LanguageModel.context`."""
        return self.model.context

    def embed(self, ids: np.ndarray) -> np.ndarray:
        """See `LanguageModel.embed`."""
        return self.model.embed(ids)

    def prefill(
        self, embeds: np.ndarray, lengths: np.ndarray, capacity: int | None = None
    ) -> tuple[np.ndarray, State]:
        """See `LanguageModel.prefill`; `LanguageModel.extend` where there is a state."""
        if self.state is not None:
            return self.extend(embeds, lengths, self.state)
        logits, self.state = self.model.prefill(embeds, lengths, capacity)
        return logits, self.state

    def extend(
        self, embeds: np.ndarray, lengths: np.ndarray, state: State
    ) -> tuple[np.ndarray, State]:
        """See `LanguageModel.extend`."""
        logits, self.state = self.model.extend(embeds, lengths, state)
        return logits, self.state

    def decode(self, ids: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """See `LanguageModel.decode`."""
        logits, self.state = self.model.decode(ids, state)
        return logits, self.state

    def rewind(self, state: State, lengths: np.ndarray) -> State:
        """See `LanguageModel.rewind`."""
        self.state = self.model.rewind(state, lengths)
        return self.state
