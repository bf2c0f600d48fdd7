"""The layout of the original LLaVA, end to end: torch files, SentencePiece, vicuna's prompt."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from PIL import Image

from paddle_recomp.checkpoint.shards import read_weights
from paddle_recomp.checkpoint.tensors import load as load_tensor
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.vlm.demo import demo_folder
from paddle_recomp.vlm.fingerprints import tower_key
from paddle_recomp.vlm.loading import find_checkpoint, load, load_front_end
from paddle_recomp.vlm.runtimes import Runtime
from paddle_recomp.vlm.vlm import VLM
from tests.checkpoint.conftest import ORIGINAL_CONFIG
from tests.checkpoint.writers import write_json, write_torch

QUESTION = "what digit is red?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's weights as `pytorch_model.bin`, with a tokenizer of its own."""
    target = tmp_path_factory.mktemp("original")
    checkpoint = find_checkpoint("demo")
    spec = checkpoint.spec.language
    write_json(
        target / "config.json",
        {
            **ORIGINAL_CONFIG,
            "mm_hidden_size": checkpoint.spec.vision.hidden_size,
            "mm_vision_tower": "the demo's",
            "hidden_size": spec.hidden_size,
            "intermediate_size": spec.intermediate_size,
            "num_hidden_layers": spec.num_layers,
            "num_attention_heads": spec.num_heads,
            "num_key_value_heads": spec.num_kv_heads,
            "max_position_embeddings": spec.max_positions,
            "rms_norm_eps": spec.rms_norm_eps,
            "vocab_size": spec.vocab_size,
        },
    )
    arrays = {
        name if name.startswith("lm_head") else f"model.{name}": array
        for name, array in checkpoint.parameters("language_model")
    }
    for name, array in checkpoint.parameters("projector"):
        layer, kind = name.split(".")
        arrays[f"model.mm_projector.{0 if layer == 'linear_1' else 2}.{kind}"] = array
    write_torch(target / "pytorch_model.bin", arrays, "float16")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["USER: what digit is red? ASSISTANT: seven"] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (target / "tokenizer.model").write_bytes(model.getvalue())
    return target


@pytest.fixture(scope="module")
def original(folder: Path) -> VLM:
    return load(folder, demo_folder() / "clip")


def test_it_answers_with_its_own_template_and_tokenizer(original: VLM, picture: Path) -> None:
    seen = original.see(picture)
    (prompt,) = original.compress([seen], [QUESTION], TokenBudget(tokens=20))
    assert prompt.prompt.text.startswith("A chat between a curious user")
    answer = original.ask(
        seen, QUESTION, TokenBudget(tokens=20), generation=GenerationConfig(max_new_tokens=3)
    )
    assert answer.num_visual_tokens == 20


def test_pictures_are_padded_to_a_square(original: VLM, picture: Path) -> None:
    """The original config says so; the box then reaches beyond the picture."""
    assert original.front_end.image_processor.aspect == "pad"
    left, top, right, bottom = original.see(picture).box
    with Image.open(picture) as image:
        assert (right - left, bottom - top) == (image.width, image.width)


def test_a_vision_tower_of_its_own_is_used(folder: Path, original: VLM, tmp_path: Path) -> None:
    """Its weights reach the tower, and the name under which features are cached."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    clip = find_checkpoint("demo")
    arrays = {
        f"model.vision_tower.vision_tower.vision_model.{name}": array
        for name, array in clip.parameters("vision_tower")
        if name != "visual_projection.weight"
    }
    (name,) = (name for name in arrays if name.endswith("patch_embedding.weight"))
    arrays[name] = -arrays[name]
    weights = read_weights(folder)
    stored = {name: load_tensor(tensor) for name, tensor in weights.items()}
    write_torch(tmp_path / "pytorch_model.bin", {**stored, **arrays}, "float32")
    config = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", {**config, "unfreeze_mm_vision_tower": True})
    own = find_checkpoint(tmp_path, demo_folder() / "clip")
    assert own.fingerprint() != find_checkpoint(folder, demo_folder() / "clip").fingerprint()
    keys = {
        tower_key(one, CompressionConfig(), Runtime("eager Paddle", "cpu", "fp32"), ["features"])
        for one in (own, find_checkpoint(folder, demo_folder() / "clip"), clip)
    }
    assert len(keys) == 2
    pixels = original.front_end.image_processor([Image.new("RGB", (224, 224), (200, 30, 90))])
    found = load_front_end(own).backend.run("vision", {"pixel_values": pixels})
    usual = original.front_end.backend.run("vision", {"pixel_values": pixels})
    difference = np.abs(found["features"] - usual["features"]).max()
    assert difference > 0.01 * np.abs(usual["features"]).max()


def test_same_weights_same_tokens(original: VLM) -> None:
    """Of a square picture both layouts make the same, up to the projector."""
    square = Image.effect_noise((224, 224), 80).convert("RGB")
    other = load_front_end(find_checkpoint("demo"))
    ours, theirs = (
        front_end.compress(front_end.see([square]), [QUESTION], TokenBudget(tokens=24))[
            0
        ].compressed[0]
        for front_end in (original.front_end, other)
    )
    np.testing.assert_array_equal(ours.index, theirs.index)
    np.testing.assert_allclose(ours.embeds, theirs.embeds, atol=1e-5)
