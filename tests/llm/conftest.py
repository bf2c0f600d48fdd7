"""Small language models behind the one protocol, whatever runs them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from export.decoder.write import write_decoder
from paddle_recomp.checkpoint import Checkpoint, open_checkpoint
from paddle_recomp.config import GenerationConfig
from paddle_recomp.llm.base import LanguageModel, State
from paddle_recomp.llm.generation import Draft, Generation
from paddle_recomp.llm.onnx_decoder import Cache, OnnxDecoder
from paddle_recomp.llm.paddle_llama import PaddleLlama
from paddle_recomp.preprocess import LanguageTokenizer
from paddle_recomp.vlm.demo import demo_folder

GOLDEN = Path(__file__).parents[1] / "golden"


LLAMAS = ("tiny", "grouped", "linear_rope", "llama3_rope", "tied")
"""Golden models that paddlenlp's Llama can run."""
DECODERS = (*LLAMAS, "biased", "qwen2", "mistral")
"""All golden models."""


def golden(name: str) -> Checkpoint:
    folder = GOLDEN / ("hf_llava_tiny" if name == "tiny" else f"hf_llava_variants/{name}")
    return open_checkpoint(folder / "llava", folder / "clip")


@cache
def tokenizer() -> LanguageTokenizer:
    """The demo's: the golden models have weights only, and any text will do for their tokens."""
    return LanguageTokenizer.from_folder(demo_folder() / "llava")


def answers(
    model: LanguageModel,
    prompts: Sequence[np.ndarray],
    config: GenerationConfig,
    ends: Sequence[int] = (),
) -> list[Draft]:
    """The answers to prompts [T_i, D]; no token ends them but those in `ends`."""
    drafts = [Draft(tokenizer().stream(), ends, config) for _ in prompts]
    for _ in Generation(model, prompts, drafts, config):
        pass
    return drafts


def poison(state: State, kind: str = "keys", position: int = 1) -> None:
    """Writes NaN over one number of the first layer of a KV cache."""
    cache, which = state.content, ["keys", "values"].index(kind)
    if isinstance(cache, Cache):
        list(cache.buffers.values())[which][0, 0, position, 0] = np.nan
    else:
        cache.layers[0][which][0, position, 0, 0] = float("nan")


class Exported:
    """Decoders in ONNX, each written once."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self.factory = factory
        self.done: dict[tuple[Path, str], OnnxDecoder] = {}

    def __call__(self, checkpoint: Checkpoint, precision: str = "fp32") -> OnnxDecoder:
        key = checkpoint.model_dir, precision
        if key not in self.done:
            folder = self.factory.mktemp(precision)
            info = write_decoder(checkpoint, folder, precision, {})
            self.done[key] = OnnxDecoder(folder, info)
        return self.done[key]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory)


@pytest.fixture(scope="session", params=["paddlenlp", "onnx"])
def model(request: pytest.FixtureRequest, exported: Exported) -> LanguageModel:
    """The same small model with grouped queries in each runtime."""
    checkpoint = golden("grouped")
    return PaddleLlama(checkpoint) if request.param == "paddlenlp" else exported(checkpoint)
