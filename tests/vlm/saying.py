"""A model that answers with given words."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paddle_recomp.config import GenerationConfig
from paddle_recomp.vlm.vlm import VLM


class Decoder:
    """Gives the next piece for each token, whichever that is."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = iter(pieces)

    def feed(self, token: int) -> str:
        return next(self._pieces)

    def flush(self) -> str:
        return ""


def saying(vlm: VLM, *pieces: str) -> tuple[VLM, GenerationConfig]:
    """The same model, whose every answer has these pieces, with the length that it needs."""
    tokenizer: Any = copy.copy(vlm.answerer.tokenizer)
    tokenizer.eos_token_ids = ()
    tokenizer.stream = lambda: Decoder(pieces)
    speaker = VLM(vlm.front_end, replace(vlm.answerer, tokenizer=tokenizer), info=vlm.info)
    return speaker, GenerationConfig(max_new_tokens=len(pieces))
