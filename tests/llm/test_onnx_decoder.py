"""The decoder in ONNX Runtime against transformers and paddlenlp, and its KV cache in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from export.decoder.reference import reference_logits
from paddle_recomp.config import GenerationConfig
from paddle_recomp.errors import FeatureError
from paddle_recomp.llm.base import LanguageModel
from paddle_recomp.llm.generation import pad_right
from paddle_recomp.llm.onnx_decoder import Cache, OnnxDecoder
from paddle_recomp.llm.paddle_llama import PaddleLlama
from paddle_recomp.vlm.loading import find_checkpoint

from .conftest import DECODERS, LLAMAS, Exported, answers, golden


def golden_prompts(name: str, model: LanguageModel) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The embeddings [B, T, D] of the recorded prompts, and what was recorded."""
    checkpoint = golden(name)
    expected = dict(np.load(checkpoint.clip_dir.parent / "expected.npz"))
    prompt = expected["prompt"]
    embeds = np.stack([model.embed(np.maximum(ids, 0)) for ids in prompt])
    visual = expected["image_embeds"].reshape(-1, embeds.shape[-1])
    embeds[prompt == checkpoint.spec.image_token_id] = visual
    return embeds, expected


@pytest.mark.parametrize("name", DECODERS)
def test_it_equals_transformers(name: str, exported: Exported) -> None:
    """Logits and greedy tokens; those of a sliding window reach behind it."""
    model = exported(golden(name))
    embeds, expected = golden_prompts(name, model)
    logits, _ = model.prefill(embeds, np.full(len(embeds), embeds.shape[1]))
    np.testing.assert_allclose(logits, expected["logits_last"], rtol=0, atol=1e-5)
    count = expected["generated"].shape[1]
    drafts = answers(model, list(embeds), GenerationConfig(max_new_tokens=count))
    assert [draft.token_ids for draft in drafts] == expected["generated"].tolist()


@pytest.mark.parametrize("name", DECODERS)
def test_the_reference_equals_transformers(name: str, exported: Exported) -> None:
    embeds, expected = golden_prompts(name, exported(golden(name)))
    found = reference_logits(golden(name), embeds)
    np.testing.assert_allclose(found, expected["logits_last"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*LLAMAS, "demo"])
def test_it_equals_paddlenlp(name: str, exported: Exported) -> None:
    """64 greedy tokens of prompts of different lengths, and the logits on the way."""
    checkpoint = find_checkpoint("demo") if name == "demo" else golden(name)
    models: tuple[LanguageModel, ...] = (PaddleLlama(checkpoint), exported(checkpoint))
    rng = np.random.default_rng(3)
    prompts = [models[0].embed(rng.integers(8, 60, size=length)) for length in (21, 9)]
    states, logits = [], []
    for model in models:
        first, state = model.prefill(*pad_right(prompts))
        logits.append(first)
        states.append(state)
    for _ in range(64):
        np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-3)
        tokens = logits[0].argmax(axis=-1)
        np.testing.assert_array_equal(logits[1].argmax(axis=-1), tokens)
        for i, model in enumerate(models):
            logits[i], states[i] = model.decode(tokens, states[i])


@pytest.mark.parametrize("name", ["mistral", "qwen2", "biased"])
def test_a_cache_equals_no_cache_for_every_kind(name: str, exported: Exported) -> None:
    model = exported(golden(name))
    embeds = model.embed(np.random.default_rng(5).integers(8, 60, size=40))[None]
    whole, _ = model.prefill(embeds, np.array([40]))
    _, state = model.prefill(embeds[:, :9], np.array([9]))
    _, state = model.extend(embeds[:, 9:30], np.array([21]), state)
    for position in range(30, 40):
        logits, state = model.extend(embeds[:, position : position + 1], np.array([1]), state)
    np.testing.assert_allclose(logits, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("precision", "least"), [("int8", 0.999), ("int4", 0.98)])
def test_smaller_precisions_stay_close(precision: str, least: float, exported: Exported) -> None:
    checkpoint = find_checkpoint("demo")
    full, small = exported(checkpoint), exported(checkpoint, precision)
    prompts = [
        full.embed(np.random.default_rng(seed).integers(8, 700, size=40)) for seed in range(8)
    ]
    expected, found = (
        np.concatenate([model.prefill(one[None], np.array([40]))[0] for one in prompts])
        for model in (full, small)
    )
    cosine = (expected * found).sum(axis=1)
    cosine /= np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    assert least < cosine.mean() < 1


def test_the_cache_is_written_in_place(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step gives is the memory that it was given, and only one position of it changes: no
    step copies the past."""
    model = exported(golden("grouped"))
    grown: list[int] = []
    original = Cache.with_room

    def counted(self: Cache, capacity: int, filled: int) -> Cache:
        grown.append(capacity)
        return original(self, capacity, filled)

    monkeypatch.setattr(Cache, "with_room", counted)
    embeds = model.embed(np.arange(10, 20))[None]
    _, state = model.prefill(embeds, np.array([10]), capacity=30)
    first: Cache = state.content
    assert first.capacity == 30
    buffers = dict(first.buffers)
    for position in range(10, 30):
        before = {name: value.copy() for name, value in buffers.items()}
        _, state = model.decode(np.array([9]), state)
        assert state.content is first
        for name, buffer in first.buffers.items():
            assert buffer is buffers[name]
            changed = (buffer != before[name]).any(axis=(0, 1, 3))
            assert np.flatnonzero(changed).tolist() == [position]
    assert not grown
    _, state = model.decode(np.array([9]), state)
    assert grown == [60]
    assert state.content.capacity == 60


def test_a_long_prompt_is_read_in_pieces(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one prompt, or of several behind a past; the same as in one piece, as far as rounding."""
    model = exported(find_checkpoint("demo"))
    ids = np.random.default_rng(1).integers(8, 700, size=(2, 600))
    embeds = np.stack([model.embed(row) for row in ids])
    whole = model._run(
        embeds, np.array([600, 530]), np.array([0, 0]), Cache.empty(model.info, 2, 600)
    )
    read: list[int] = []
    original = model._run

    def counted(embeds: np.ndarray, *rest: Any) -> np.ndarray:
        read.append(embeds.shape[1])
        return original(embeds, *rest)

    monkeypatch.setattr(model, "_run", counted)
    alone, _ = model.prefill(embeds[:1], np.array([600]))
    assert read == [256, 256, 88]
    np.testing.assert_allclose(alone, whole[:1], rtol=0, atol=1e-4)
    read.clear()
    _, state = model.prefill(embeds[:, :10], np.array([10, 10]))
    both, state = model.extend(embeds[:, 10:], np.array([590, 520]), state)
    assert read == [10, 256, 256, 78, 256, 256, 8]
    np.testing.assert_allclose(both, whole, rtol=0, atol=1e-4)
    assert state.lengths.tolist() == [600, 530]


def test_a_cache_is_one_block_of_memory(exported: Exported) -> None:
    """The system takes a large block back when it is freed; small ones stay with the process."""
    first = Cache.empty(exported(golden("grouped")).info, 1, 16)
    for cache in (first, first.with_room(40, 8)):
        values = list(cache.buffers.values())
        assert len({id(value.base) for value in values}) == 1
        assert values[0].base is not None
        assert values[0].base.nbytes == sum(value.nbytes for value in values)
        assert all(value.flags.c_contiguous for value in values)


def test_present_is_past(exported: Exported) -> None:
    """The graph writes into the very arrays that it reads from, and nothing behind what is new."""
    model = exported(golden("grouped"))
    cache = Cache.empty(model.info, 1, 16)
    addresses = {name: value.ctypes.data for name, value in cache.buffers.items()}
    model._run(model.embed(np.arange(10, 15))[None], np.array([5]), np.array([0]), cache)
    for name, value in cache.buffers.items():
        assert value.ctypes.data == addresses[name]
        assert value[:, :, :5].any(axis=(0, 1, 3)).all()
        assert not value[:, :, 5:].any()


def test_nan_is_an_error(exported: Exported) -> None:
    model = exported(golden("grouped"))
    embeds = np.full((1, 3, 32), np.nan, dtype=np.float32)
    with pytest.raises(FeatureError, match="logits"):
        model.prefill(embeds, np.array([3]))


def test_the_embedding_is_mapped_not_read(exported: Exported) -> None:
    model = exported(golden("grouped"))
    assert isinstance(model._embed_tokens, np.memmap)
    assert isinstance(model, OnnxDecoder)
