"""Compressors decide what is asked of a question: its embedding, its words, or nothing at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_recomp import VLM, TokenBudget
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.compression.method import MethodInputs
from paddle_recomp.compression.registry import METHODS
from paddle_recomp.errors import ConfigError
from paddle_recomp.preprocess import Prompt
from paddle_recomp.types import Compressed
from paddle_recomp.vlm.front_end import VisualFrontEnd, pad_words
from paddle_recomp.vlm.loading import find_checkpoint, load_front_end
from tests.compressor.everything import EVERYTHING
from tests.vlm.counting import CountingBackend

QUESTIONS = ["where is the red circle?", "how many digits are there?"]


def front_end_of(method: str) -> VisualFrontEnd:
    return load_front_end(find_checkpoint("demo"), CompressionConfig(method))


def test_words_are_embedded_by_the_language_model(
    vlm: VLM, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[MethodInputs] = []

    def spy(inputs: MethodInputs, bounds: Any, options: Any) -> Compressed:
        heard.append(inputs)
        return EVERYTHING.compress(inputs, bounds, options)

    monkeypatch.setitem(METHODS, "everything", replace(EVERYTHING, compress=spy))
    reading = VLM(front_end_of("everything"), vlm.answerer)
    seen = reading.see(picture)
    alone = [reading.ask(seen, question, TokenBudget(tokens=9)) for question in QUESTIONS]
    answerer, first = vlm.answerer, heard[0]
    ids = answerer.tokenizer.encode(Prompt.said(QUESTIONS[0]))[1:]
    expected = answerer.model.embed(np.array(ids))
    np.testing.assert_array_equal(first.word_embeds.numpy()[0], expected)
    assert first.word_mask.numpy().all()
    together = reading.ask_batch([seen, seen], QUESTIONS, TokenBudget(tokens=9))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.compressed[0].index, other.compressed[0].index)
    (turn,) = [reading.chat(seen).ask(QUESTIONS[0], TokenBudget(tokens=9))]
    np.testing.assert_array_equal(turn.compressed[0].index, alone[0].compressed[0].index)
    with pytest.raises(ConfigError, match=r"reads the question's words.*VLM"):
        reading.front_end.compress([seen], [QUESTIONS[0]], TokenBudget())


def test_a_method_that_reads_no_question_does_not_run_the_text_tower(picture: Path) -> None:
    front_end = front_end_of("visual")
    backend = CountingBackend(front_end.backend)
    counted = replace(front_end, backend=backend)
    counted.compress(counted.see([picture]), [QUESTIONS[0]], TokenBudget())
    assert backend.runs == {"vision": 1, "compress": 1}


def test_padding_of_words() -> None:
    embeds, mask = pad_words([np.ones((2, 3)), np.full((4, 3), 2.0)])
    assert embeds.dtype == np.float32
    assert mask.tolist() == [[True, True, False, False], [True] * 4]
    assert embeds[0].sum() == 6
    assert embeds[1].sum() == 24
