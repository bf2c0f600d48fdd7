"""The texts of clip_pooling.npz, and the rows that its table of words has more."""

from __future__ import annotations

import numpy as np

START, END, ROWS = 118, 119, 128
EOS_TOKEN_IDS = (2, END, 123)
"""What a configuration says: as OpenAI's files, the tokenizer's end, a token of an extension."""
LENGTH = 32
TEXTS = (
    [START, 5, 6, 7, END],
    [START, *range(40, 40 + LENGTH - 2), END],
    [START, END],
    # 2 is a letter.
    [START, 2, 9, 2, END],
    # Tokens behind the tokenizer's own.
    [START, 5, 123, 6, END],
    [START, 5, 123, 6, 127, 123, END],
)
IDS = np.array([[*text, *[END] * (LENGTH - len(text))] for text in TEXTS])


def more_rows(table: np.ndarray) -> np.ndarray:
    """The table of words [V, C] with rows behind it: [ROWS, C]."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(ROWS - len(table), table.shape[1])) * table.std()
    return np.concatenate([table, rows.astype(table.dtype)])
