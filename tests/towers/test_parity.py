"""Towers, projector and language model against what transformers computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest

from paddle_recomp.backends.eager import EagerBackend
from paddle_recomp.checkpoint import Checkpoint, open_checkpoint
from paddle_recomp.compression.config import CompressionConfig, preset
from paddle_recomp.llm.paddle_llama import PaddleLlama

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = (
    "hf_llava_tiny/llava",
    "hf_llava_tiny/llava_hub_layout",
    "hf_llava_variants/grouped/llava",
    "hf_llava_variants/linear_rope/llava",
    "hf_llava_variants/llama3_rope/llava",
    "hf_llava_variants/tied/llava",
)


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    folder = GOLDEN / request.param
    return open_checkpoint(folder, folder.parent / "clip")


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return dict(np.load(checkpoint.clip_dir.parent / "expected.npz"))


def close(found: paddle.Tensor, wanted: np.ndarray, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=tolerance)


def test_vision_tower(checkpoint: Checkpoint, expected: dict[str, np.ndarray]) -> None:
    pixels = paddle.to_tensor(expected["pixels"])
    for name, key in (("corrected", "patch_proj_ln"), ("faithful", "patch_proj_raw")):
        tower = EagerBackend(checkpoint, preset(name)).visual_encoder.vision_tower
        states, _ = tower.hidden_states(pixels)
        close(states[-2], expected["hidden_m2"])
        close(states[-1], expected["last_hidden"])
        close(tower.project(states[-1]), expected[key])
        features = tower(pixels)
        close(features.features, expected["hidden_m2"][:, 1:])
        close(features.patch_embeds, expected[key][:, 1:])


def test_keys_and_class_attention_follow_the_last_layer(
    checkpoint: Checkpoint, expected: dict[str, np.ndarray]
) -> None:
    """Recomputed in NumPy from hidden state −2 and the checkpoint's own weights."""
    weights = dict(checkpoint.parameters("vision_tower"))
    last = f"encoder.layers.{checkpoint.spec.vision.num_layers - 1}"
    hidden = expected["hidden_m2"].astype("float64")
    mean, variance = hidden.mean(-1, keepdims=True), hidden.var(-1, keepdims=True)
    normal = (hidden - mean) / np.sqrt(variance + checkpoint.spec.vision.layer_norm_eps)
    normal = normal * weights[f"{last}.layer_norm1.weight"] + weights[f"{last}.layer_norm1.bias"]

    def projection(name: str) -> np.ndarray:
        prefix = f"{last}.self_attn.{name}_proj"
        return np.asarray(normal @ weights[f"{prefix}.weight"].T + weights[f"{prefix}.bias"])

    query, key = projection("q")[:, :1], projection("k")
    logits = (query @ key.transpose(0, 2, 1))[:, 0] / np.sqrt(key.shape[-1])
    attention = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    backend = EagerBackend(checkpoint, CompressionConfig())
    outputs = backend.run("vision", {"pixel_values": expected["pixels"]})
    np.testing.assert_allclose(outputs["keys"], key[:, 1:], atol=1e-4)
    np.testing.assert_allclose(outputs["visual_score"], attention[:, 1:], rtol=1e-4)


def test_text_tower(checkpoint: Checkpoint, expected: dict[str, np.ndarray]) -> None:
    backend = EagerBackend(checkpoint, CompressionConfig())
    outputs = backend.run("text", {"question_ids": expected["text_ids"]})
    close(outputs["text_embeds"], expected["text_embed"])
    # Whatever stands behind the first end of text is padding: it must not matter.
    padded = np.concatenate([expected["text_ids"][:, :-3], np.full((2, 3), 5)], axis=1)
    close(backend.run("text", {"question_ids": padded})["text_embeds"], expected["text_embed"])
    last = EagerBackend(checkpoint, preset("faithful"))
    faithful = last.run("text", {"question_ids": expected["text_ids"]})["text_embeds"]
    assert np.abs(faithful - expected["text_embed"]).max() > 1e-2


def test_projector(checkpoint: Checkpoint, expected: dict[str, np.ndarray]) -> None:
    backend = EagerBackend(checkpoint, CompressionConfig())
    found = backend.visual_encoder.projector(paddle.to_tensor(expected["hidden_m2"][:, 1:]))
    close(found, expected["image_embeds"])


def test_language_model(checkpoint: Checkpoint, expected: dict[str, np.ndarray]) -> None:
    model = PaddleLlama(checkpoint)
    prompt = expected["prompt"]
    embeds = np.stack([model.embed(np.maximum(ids, 0)) for ids in prompt])
    embeds[prompt == checkpoint.spec.image_token_id] = expected["image_embeds"].reshape(
        -1, embeds.shape[-1]
    )
    logits, state = model.prefill(embeds, np.full(len(prompt), prompt.shape[1]))
    close(logits, expected["logits_last"], 1e-3)
    tokens = []
    for _ in range(expected["generated"].shape[1]):
        tokens.append(logits.argmax(axis=-1))
        logits, state = model.decode(tokens[-1], state)
    np.testing.assert_array_equal(np.stack(tokens, axis=1), expected["generated"])
