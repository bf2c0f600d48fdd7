"""From prompt embeddings to tokens: padding of a batch and the decoding loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from paddle_recomp.config import GenerationConfig
from paddle_recomp.llm.base import LanguageModel
from paddle_recomp.llm.draft import Draft
from paddle_recomp.llm.sampling import choose, log_probabilities


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
    drafts: Sequence[Draft],
    config: GenerationConfig,
) -> Iterator[list[str]]:
    """Answers prompts [T_i, D], each into its draft, until all have ended: yields, after each
    token, the new text of each."""
    embeds, lengths = pad_right(prompts)
    # Seeded alike: an answer does not depend on its place in a batch.
    streams = [np.random.default_rng(config.seed) for _ in prompts]
    logits, state = model.prefill(embeds, lengths, int(lengths.max()) + config.max_new_tokens)
    while True:
        tokens = choose(logits, [draft.token_ids for draft in drafts], config, streams)
        logprobs = log_probabilities(logits, tokens)
        steps = zip(drafts, tokens.tolist(), logprobs.tolist(), strict=True)
        yield [draft.add(token, logprob) for draft, token, logprob in steps]
        if all(draft.finish_reason for draft in drafts):
            return
        logits, state = model.decode(tokens, state)
