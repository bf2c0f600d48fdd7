"""From the ids of a prompt to its embeddings: visual tokens among words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paddle_recomp.errors import ContextLengthError
from paddle_recomp.llm.base import LanguageModel
from paddle_recomp.preprocess import IMAGE_TOKEN


def splice(model: LanguageModel, ids: Sequence[int], blocks: Sequence[np.ndarray]) -> np.ndarray:
    """The embeddings [T, D] float32 of a prompt, with a block of visual tokens [M, D] in place of
    each IMAGE_TOKEN, in order."""
    numbers = np.array(ids, dtype=np.int64)
    (places,) = np.nonzero(numbers == IMAGE_TOKEN)
    words = model.embed(np.delete(numbers, places))
    # Each block pushed out one id, so the words in front of the next are as many fewer.
    starts = [0, *(places - np.arange(len(places))), len(words)]
    parts = [words[: starts[1]]]
    for block, begin, end in zip(blocks, starts[1:-1], starts[2:], strict=True):
        parts += [block, words[begin:end]]
    return np.concatenate(parts).astype(np.float32)


def num_positions(ids: Sequence[int], blocks: Sequence[np.ndarray]) -> int:
    """T of `splice`."""
    return len(ids) - len(blocks) + sum(len(block) for block in blocks)


def check_room(
    model: LanguageModel, ids: Sequence[int], blocks: Sequence[np.ndarray], max_new_tokens: int
) -> None:
    """Raises: ContextLengthError when prompt and answer may together exceed the language model's
    context; it says how many visual tokens would fit."""
    positions = num_positions(ids, blocks)
    words = len(ids) - len(blocks)
    if positions + max_new_tokens <= model.context:
        return
    room = model.context - words - max_new_tokens
    fits = f"at most {room} visual tokens would fit"
    if room < len(blocks) or not blocks:
        fits = "the text has to be shorter, or the answer"
    raise ContextLengthError(
        f"the prompt has {words} tokens of text and {positions - words} visual tokens, the answer "
        f"may take {max_new_tokens}; the language model's context is {model.context}: {fits}"
    )
