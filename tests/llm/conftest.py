"""Small language models behind the one protocol, whatever runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddle_recomp.checkpoint import Checkpoint, open_checkpoint
from paddle_recomp.llm.base import LanguageModel
from paddle_recomp.llm.paddle_llama import PaddleLlama

GOLDEN = Path(__file__).parents[1] / "golden"
GROUPED = GOLDEN / "hf_llava_variants" / "grouped"


@pytest.fixture(scope="session")
def grouped() -> Checkpoint:
    return open_checkpoint(GROUPED / "llava", GROUPED / "clip")


@pytest.fixture(scope="session", params=["paddlenlp"])
def model(request: pytest.FixtureRequest, grouped: Checkpoint) -> LanguageModel:
    return PaddleLlama(grouped)
