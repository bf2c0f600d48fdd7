"""From logits to the next token: pure functions of arrays. B prompts, V vocabulary.

The steps that change the distribution have the order of transformers: repetition penalty,
temperature, top-k, top-p. Equal logits are ordered by their ids, so that top-k keeps exactly k and
`top_k=1` is greedy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paddle_recomp.config import GenerationConfig


def choose(
    logits: np.ndarray,
    past: Sequence[Sequence[int]],
    config: GenerationConfig,
    streams: Sequence[np.random.Generator],
) -> np.ndarray:
    """logits [B, V], the tokens that each answer has so far, one stream of random numbers for each
    prompt -> the next token of each [B] int64."""
    logits = warp(logits, past, config)
    return logits.argmax(axis=-1) if config.temperature == 0 else draw(logits, streams)


def warp(logits: np.ndarray, past: Sequence[Sequence[int]], config: GenerationConfig) -> np.ndarray:
    """logits [B, V] changed as the configuration says, with −inf for tokens that must not be drawn.
    At temperature 0 only the penalty applies."""
    logits = penalise_repetition(logits, past, config.repetition_penalty)
    if config.temperature == 0:
        return logits
    logits = scale(logits, config.temperature)
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    return keep_top_p(logits, config.top_p)


def penalise_repetition(
    logits: np.ndarray, past: Sequence[Sequence[int]], penalty: float
) -> np.ndarray:
    """logits [B, V] with those of the tokens in `past` made smaller, once each: positive ones
    divided by the penalty, negative ones multiplied (Keskar et al. 2019, as in transformers)."""
    if penalty == 1:
        return logits
    penalised = logits.copy()
    for row, tokens in zip(penalised, past, strict=True):
        found = row[list(tokens)]
        row[list(tokens)] = np.where(found < 0, found * penalty, found / penalty)
    return penalised


def scale(logits: np.ndarray, temperature: float) -> np.ndarray:
    """logits [B, V] -> [B, V] float64 divided by the temperature, with the largest moved to 0, so
    that even the smallest temperature does not overflow."""
    logits = logits.astype(np.float64)
    return (logits - logits.max(axis=-1, keepdims=True)) / temperature


def keep_top_k(logits: np.ndarray, count: int) -> np.ndarray:
    """logits [B, V] with −inf for all but the `count` largest of each row."""
    count = min(count, logits.shape[-1])
    least = np.partition(logits, -count, axis=-1)[:, -count]
    kept = np.full_like(logits, -np.inf)
    for row, old, limit in zip(kept, logits, least, strict=True):
        best = _descending(old, old >= limit)[:count]
        row[best] = old[best]
    return kept


def keep_top_p(logits: np.ndarray, mass: float) -> np.ndarray:
    """logits [B, V] with −inf for all but the fewest largest of each row whose probabilities sum up
    to at least `mass`; never none."""
    if mass == 1:
        return logits
    kept = np.full_like(logits, -np.inf)
    for row, old, likely in zip(kept, logits, probabilities(logits), strict=True):
        # Sorting a whole vocabulary takes long. A token is kept if it and the less likely ones, at
        # most V tokens, sum to more than 1 − mass. So it has at least a V-th of that, and others
        # need no sorting.
        best = _descending(old, likely >= (1 - mass) / len(old))
        before = np.cumsum(likely[best]) - likely[best]
        best = best[before < mass]
        row[best] = old[best]
    return kept


def draw(logits: np.ndarray, streams: Sequence[np.random.Generator]) -> np.ndarray:
    """Draws a token from each row of logits [B, V] by its probability -> [B] int64. Each row takes
    one number from its own stream, so that a prompt's tokens do not depend on its neighbours."""
    rows = zip(probabilities(logits), streams, strict=True)
    return np.array([stream.choice(len(row), p=row) for row, stream in rows], dtype=np.int64)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits [B, V] -> [B, V] float64."""
    logits = logits.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def log_probabilities(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Natural log-probabilities of tokens [B] in the distribution of logits [B, V] -> [B] float64.
    They come from the model's own logits, before all steps above."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen - np.log(np.exp(logits).sum(axis=-1))


def _descending(logits: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The ids for which `among` [V] holds, by descending logits [V]."""
    ids = np.flatnonzero(among)
    return ids[np.argsort(-logits[ids], kind="stable")]
