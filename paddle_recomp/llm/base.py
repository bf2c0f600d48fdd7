"""The protocol of every language model in every runtime: embed, prefill, extend, decode.

B prompts, T positions, D width, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from paddle_recomp.backends.base import check_finite
from paddle_recomp.errors import ContextLengthError, StateError


@dataclass
class State:
    """The KV cache of a batch of prompts. A call that takes a state spends it and returns the next
    one, because the cache grows in place. Only the latest state can be continued."""

    lengths: np.ndarray
    """[B] int64: the positions of each prompt that are in the cache."""
    owner: object = field(repr=False)
    content: Any = field(repr=False)
    """The cache itself, of a type that only the owner knows."""
    spent: bool = False

    def spend(self, owner: object) -> Any:
        """The content, once.

        Raises: StateError for a state that was continued before, or that another model made."""
        if self.owner is not owner:
            raise StateError("the KV cache was made by another language model")
        if self.spent:
            raise StateError("the KV cache was continued before; continue from the state after it")
        self.spent = True
        return self.content


class LanguageModel(Protocol):
    """A decoder that takes embeddings, so that visual tokens can stand among words.

    Prompts of a batch are padded on the right, and `lengths` [B] int64 says how many positions of
    each are real; the padding behind them has no effect."""

    @property
    def context(self) -> int:
        """The positions that a conversation may have."""
        ...

    def embed(self, ids: np.ndarray) -> np.ndarray:
        """Token ids [T] int64 -> embeddings [T, D] float32."""
        ...

    def prefill(
        self, embeds: np.ndarray, lengths: np.ndarray, capacity: int | None = None
    ) -> tuple[np.ndarray, State]:
        """embeds [B, T, D] float32 -> logits behind the last real position of each prompt [B, V]
        float32, state. `capacity` is the number of positions for which the cache has room from the
        start; it grows when more are needed.

        Raises: ContextLengthError; FeatureError for logits that are not finite."""
        ...

    def extend(
        self, embeds: np.ndarray, lengths: np.ndarray, state: State
    ) -> tuple[np.ndarray, State]:
        """More positions of each prompt [B, T, D], at least one -> as `prefill`. Spends the state.

        Raises: ContextLengthError, after which the state can still be used; StateError;
        FeatureError as `prefill`."""
        ...

    def decode(self, ids: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """The next token of each prompt [B] int64 -> as `extend`, of one position each."""
        ...

    def rewind(self, state: State, lengths: np.ndarray) -> State:
        """Shortens the cache to the first `lengths` [B] positions of each prompt, at least one.
        Spends the state.

        Raises: StateError, also for more positions than there are."""
        ...


def check_lengths(embeds: np.ndarray, lengths: np.ndarray, past: np.ndarray, context: int) -> None:
    """Checks new positions [B, T, D], of which `lengths` [B] are real, behind `past` [B] others.

    Raises: StateError for another batch than the past's, or lengths outside 1 … T;
    ContextLengthError when a prompt becomes longer than the context."""
    if not len(embeds) == len(lengths) == len(past):
        raise StateError(
            f"{len(embeds)} prompts and {len(lengths)} lengths for a KV cache of {len(past)}"
        )
    if lengths.min() < 1 or lengths.max() > embeds.shape[1]:
        raise StateError(f"lengths are {lengths.tolist()}; expected 1 to {embeds.shape[1]}")
    longest = int((past + lengths).max())
    if longest > context:
        raise ContextLengthError(
            f"a prompt has {longest} positions; the language model's context is {context}"
        )


def check_rewind(lengths: np.ndarray, past: np.ndarray) -> None:
    """Raises: StateError for another batch than the past's, or lengths outside 1 … past."""
    if len(lengths) != len(past) or (lengths < 1).any() or (lengths > past).any():
        raise StateError(
            f"a KV cache of {past.tolist()} positions cannot go back to {lengths.tolist()}"
        )


def check_numbers(**arrays: np.ndarray) -> None:
    """Raises: FeatureError naming the result of a step that holds NaN or infinity."""
    check_finite(arrays, "the weights or the KV cache")
