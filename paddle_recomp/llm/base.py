"""What every language model offers: embed, prefill, decode; whatever runs it.

B prompts, T positions, D width, V vocabulary."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from paddle_recomp.checkpoint import LanguageModelSpec

State = Any
"""The KV cache and what belongs to it, opaque to everyone but the model that made it."""


class LanguageModel(Protocol):
    """A decoder that takes embeddings, so that visual tokens can stand among words."""

    spec: LanguageModelSpec

    def embed(self, ids: np.ndarray) -> np.ndarray:
        """Token ids [T] int64 -> embeddings [T, D] float32."""
        ...

    def prefill(self, embeds: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, State]:
        """embeds [B, T, D], mask [B, T] (0 where padded, on the left) -> logits of the last
        position [B, V] float32, state."""
        ...

    def decode(self, ids: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """The next token of each prompt [B] int64 -> logits [B, V] float32, state."""
        ...
