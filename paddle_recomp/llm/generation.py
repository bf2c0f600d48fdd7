"""From prompt embeddings to tokens: padding of a batch and the decoding loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from paddle_recomp.llm.base import LanguageModel


def pad_right(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts [T_i, D] -> embeds [B, T, D], lengths [B] int64."""
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    shape = (len(prompts), int(lengths.max()), prompts[0].shape[1])
    embeds = np.zeros(shape, dtype=np.float32)
    for row, prompt in zip(embeds, prompts, strict=True):
        row[: len(prompt)] = prompt
    return embeds, lengths


def generate(
    model: LanguageModel,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
) -> Iterator[np.ndarray]:
    """Greedy decoding of prompts [T_i, D]: yields the next token of each [B] int64, and an
    end-of-sequence id for those that have ended; stops when all have."""
    ends = np.array(eos_token_ids)
    embeds, lengths = pad_right(prompts)
    logits, state = model.prefill(embeds, lengths, int(lengths.max()) + max_new_tokens)
    done = np.zeros(len(prompts), dtype=bool)
    for step in range(max_new_tokens):
        tokens = np.where(done, ends[0], logits.argmax(axis=-1))
        yield tokens
        done |= np.isin(tokens, ends)
        if done.all() or step == max_new_tokens - 1:
            return
        logits, state = model.decode(tokens, state)
