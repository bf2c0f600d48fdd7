"""config.json -> specs: published files, defaults, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paddle_recomp.checkpoint import (
    LanguageModelSpec,
    ProjectorSpec,
    TextTowerSpec,
    VisionTowerSpec,
    open_checkpoint,
)
from paddle_recomp.checkpoint.configs import ClipConfig, read_clip_config, read_model_config
from paddle_recomp.errors import CheckpointError, CheckpointNotFoundError
from tests.checkpoint.conftest import ORIGINAL_CONFIG, Folder, Rewrite
from tests.checkpoint.writers import write_json

# As published, without the fields that say nothing about the network.
LLAVA_7B_HF = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}
CLIP_LARGE_336: dict[str, Any] = {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
        "vocab_size": 49408,
    },
    "text_config_dict": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
    },
    "vision_config": {
        "hidden_act": "quick_gelu",
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "vision_config_dict": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
}
VISION_LARGE_336 = VisionTowerSpec(336, 14, 1024, 4096, 24, 16, "quick_gelu", 1e-5, 768)
TEXT_LARGE = TextTowerSpec(49408, 77, 768, 3072, 12, 12, "quick_gelu", 1e-5, 768, 2)
LARGE_336 = ClipConfig(VISION_LARGE_336, TEXT_LARGE)
ORIGINAL_336 = {
    **ORIGINAL_CONFIG,
    "mm_hidden_size": 1024,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
}


def clip_config(folder: Path, config: Any) -> ClipConfig:
    write_json(folder / "config.json", config)
    return read_clip_config(folder)


def language(folder: Path, **changes: Any) -> LanguageModelSpec:
    """The language model of the nearly empty text_config with some fields changed."""
    text_config = {"model_type": "llama", **changes}
    write_json(folder / "config.json", {**LLAVA_7B_HF, "text_config": text_config})
    return read_model_config(folder, LARGE_336).language


def test_published_llava_hf_takes_the_defaults_of_7b(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", LLAVA_7B_HF)
    spec = read_model_config(tmp_path, LARGE_336)
    assert spec.language == LanguageModelSpec(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=11008,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        max_positions=4096,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        tie_word_embeddings=False,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        eos_token_ids=(),
    )
    assert spec.vision == VISION_LARGE_336
    assert spec.vision.num_patches == 576
    assert spec.projector == ProjectorSpec("mlp2x_gelu", 1024, 4096, True, "gelu")
    assert (spec.image_token_id, spec.vision_feature_layer, spec.select) == (32000, -2, "default")
    assert spec.layout == "llava_hf"
    assert not spec.pad_to_square
    assert language(tmp_path).rms_norm_eps == 1e-6
    assert language(tmp_path).max_positions == 2048
    assert language(tmp_path).vocab_size == 32000


def test_original_layout(tmp_path: Path) -> None:
    config = {**ORIGINAL_336, "hidden_size": 4096}
    write_json(tmp_path / "config.json", config)
    spec = read_model_config(tmp_path, LARGE_336)
    assert spec.vision == VISION_LARGE_336
    assert spec.projector == ProjectorSpec("mlp2x_gelu", 1024, 4096, True, "gelu")
    assert (spec.image_token_id, spec.vision_feature_layer, spec.select) == (None, -2, "patch")
    assert spec.layout == "llava_original"
    assert spec.pad_to_square
    write_json(tmp_path / "config.json", {**config, "model_type": "llava_llama"})
    assert read_model_config(tmp_path, LARGE_336) == spec


def test_openai_clip(tmp_path: Path) -> None:
    assert clip_config(tmp_path, CLIP_LARGE_336) == LARGE_336


def test_clip_sections_under_old_names(tmp_path: Path) -> None:
    old = {k: v for k, v in CLIP_LARGE_336.items() if k not in ("text_config", "vision_config")}
    old["text_config"] = None
    # They do not say where to pool.
    text = replace(TEXT_LARGE, eos_token_id=49407)
    assert clip_config(tmp_path, old) == ClipConfig(VISION_LARGE_336, text)


def test_plain_clip_section_wins(tmp_path: Path) -> None:
    stale = {**CLIP_LARGE_336["vision_config_dict"], "image_size": 224}
    found = clip_config(tmp_path, {**CLIP_LARGE_336, "vision_config_dict": stale})
    assert found.vision.image_size == 336


def test_clip_defaults_are_those_of_the_base_model(tmp_path: Path) -> None:
    empty: dict[str, Any] = {"model_type": "clip", "text_config": {}, "vision_config": {}}
    assert clip_config(tmp_path, empty) == ClipConfig(
        VisionTowerSpec(224, 32, 768, 3072, 12, 12, "quick_gelu", 1e-5, 512),
        TextTowerSpec(49408, 77, 512, 2048, 12, 8, "quick_gelu", 1e-5, 512, 49407),
    )


def test_real_end_of_text_id_is_kept(golden: Path) -> None:
    assert read_clip_config(golden / "clip").text.eos_token_id == 119


@pytest.mark.parametrize(
    ("fields", "theta", "scaling"),
    [
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, None),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 1e4, {"factor": 4.0}),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 1e4, {"factor": 2}),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 7.0}},
            7.0,
            {"factor": 4.0},
        ),
        (
            {
                "rope_theta": 5e5,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            5e5,
            {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
    ],
)
def test_rotary_positions(
    tmp_path: Path, fields: dict[str, Any], theta: float, scaling: dict[str, Any] | None
) -> None:
    spec = language(tmp_path, **fields)
    assert spec.rope_theta == theta
    if scaling is None:
        assert spec.rope_scaling is None
    else:
        (section,) = (fields[name] for name in fields if name != "rope_theta")
        kind = section.get("rope_type", section.get("type"))
        assert spec.rope_scaling == {"rope_type": kind, **scaling}


def test_end_ids(tmp_path: Path) -> None:
    """In the order in which transformers asks; the tokenizer's own is no part of it."""
    generation, config = tmp_path / "generation_config.json", tmp_path / "config.json"
    assert language(tmp_path).eos_token_ids == ()
    assert language(tmp_path, eos_token_id=None).eos_token_ids == ()
    assert language(tmp_path, eos_token_id=[2, 7]).eos_token_ids == (2, 7)
    assert language(tmp_path, model_type="qwen2", eos_token_id=151645).eos_token_ids == (151645,)
    text_config = {"model_type": "llama", "eos_token_id": 4}
    write_json(config, {**LLAVA_7B_HF, "text_config": text_config, "eos_token_id": [6, 8]})
    assert read_model_config(tmp_path, LARGE_336).language.eos_token_ids == (6, 8)
    write_json(generation, {"eos_token_id": [3, 9]})
    assert read_model_config(tmp_path, LARGE_336).language.eos_token_ids == (3, 9)
    assert language(tmp_path, eos_token_id=2).eos_token_ids == (3, 9)
    for said_nothing in ({"max_length": 7}, {"eos_token_id": None}):
        write_json(generation, said_nothing)
        assert language(tmp_path, eos_token_id=5).eos_token_ids == (5,)
    write_json(generation, {"eos_token_id": "</s>"})
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id is '</s>'"):
        language(tmp_path)
    generation.unlink()
    original = {**ORIGINAL_336, "hidden_size": 4096}
    write_json(config, {**original, "eos_token_id": [2, 5]})
    assert read_model_config(tmp_path, LARGE_336).language.eos_token_ids == (2, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "4096"}, "hidden_size is '4096'; expected an integer"),
        ({"hidden_size": 4096.0}, "hidden_size is 4096.0; expected an integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; expected an integer"),
        ({"num_hidden_layers": 0}, "num_layers is 0; expected at least 1"),
        ({"num_hidden_layers": 10**9}, "num_layers is 1000000000; the limit is 1024 "),
        ({"num_attention_heads": 0}, "num_heads is 0"),
        ({"num_attention_heads": 30}, "hidden_size is 4096, not a multiple of num_attention"),
        ({"num_key_value_heads": 5}, "num_heads is 32, not a multiple of num_kv_heads, 5"),
        ({"head_dim": 5}, "head_dim is 5"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps is 'tiny'; expected a positive number"),
        ({"rope_theta": float("inf")}, "Infinity is no JSON number"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'; supported"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is None"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is None"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; expected an object"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; expected true or false"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"eos_token_id": []}, "eos_token_id is a list"),
        ({"eos_token_id": 32000}, "eos_token_id is 32000, outside the vocabulary of 32000"),
        ({"model_type": "gemma"}, "model_type is 'gemma'; supported: llama, qwen2, mistral"),
        (
            {"model_type": "qwen2", "use_sliding_window": True},
            "use_sliding_window is true",
        ),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: silu"),
    ],
)
def test_bad_language_models(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        language(tmp_path, **change)
    assert str(tmp_path / "config.json") in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava_next"}, "model_type is 'llava_next'; supported: llava"),
        ({"vision_feature_select_strategy": "full"}, "'full'; supported: default"),
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer is a list"),
        ({"vision_feature_layer": 3}, "vision_feature_layer is 3"),
        ({"vision_feature_layer": -26}, "vision_feature_layer is -26"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'; supported: gelu"),
        ({"multimodal_projector_bias": 1}, "multimodal_projector_bias is 1"),
        ({"image_token_index": "<image>"}, "image_token_index is '<image>'"),
        ({"vision_config": None}, "'vision_config' is missing"),
        ({"text_config": None}, "'text_config' is missing"),
        ({"text_config": [1]}, "text_config is a list; expected an object"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act is 'relu'"),
        ({"vision_config": {"num_channels": 4}}, "num_channels is 4"),
        ({"vision_config": {"patch_size": 500}}, "patch_size is 500, larger than image_size"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "siglip_vision_model"),
    ],
)
def test_bad_llava_hf(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_json(tmp_path / "config.json", {**LLAVA_7B_HF, **change})
    with pytest.raises(CheckpointError, match=message):
        read_model_config(tmp_path, LARGE_336)


@pytest.mark.parametrize(
    ("name", "size", "patch"),
    [
        ("openai/clip-vit-large-patch14-336", 224, 14),
        ("openai/clip-vit-large-patch14", 336, 14),
        ("/models/clip-vit-large-patch14-336/", 224, 14),
        ("openai/clip-vit-base-patch16", 224, 32),
        ("OpenAI/CLIP-ViT-L-14-336PX", 224, 14),
        ("my-tower-336", 224, 14),
    ],
)
def test_a_clip_of_another_size_than_the_original_config_names(
    tmp_path: Path, name: str, size: int, patch: int
) -> None:
    clip = replace(LARGE_336.vision, image_size=size, patch_size=patch)
    write_json(tmp_path / "config.json", {**ORIGINAL_336, "mm_vision_tower": name})
    message = rf"mm_vision_tower is \"{name}\": pictures .* takes {size} and {patch}$"
    with pytest.raises(CheckpointError, match=message):
        read_model_config(tmp_path, LARGE_336._replace(vision=clip))


def test_a_tower_whose_name_says_no_size(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {**ORIGINAL_336, "hidden_size": 4096})
    spec = read_model_config(tmp_path, LARGE_336)
    own = {**ORIGINAL_336, "hidden_size": 4096, "mm_vision_tower": "./my_tower"}
    write_json(tmp_path / "config.json", own)
    assert read_model_config(tmp_path, LARGE_336) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unfreeze_mm_vision_tower": 1}, "unfreeze_mm_vision_tower is 1; expected true or false"),
        ({"mm_vision_tower": None}, "'mm_vision_tower' is missing"),
        ({"s2": True}, "s2 is true"),
        ({"model_type": "llava_mistral"}, "model_type is 'llava_mistral'"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type is 'mlp3x_gelu'; supported"),
        ({"mm_vision_select_feature": "cls_patch"}, "'cls_patch'; supported: patch"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"image_aspect_ratio": "anyres"}, "'anyres'"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "'spatial_unpad'"),
        ({"mm_hidden_size": None}, "'mm_hidden_size' is missing"),
        ({"mm_hidden_size": 512}, "projector input is 512 wide, but what it meets is 1024"),
    ],
)
def test_bad_original(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_json(tmp_path / "config.json", {**ORIGINAL_336, **change})
    with pytest.raises(CheckpointError, match=message):
        read_model_config(tmp_path, LARGE_336)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 224),
        ("patch_size", 16),
        ("hidden_size", 768),
        ("intermediate_size", 1024),
        ("num_layers", 12),
        ("num_heads", 8),
        ("hidden_act", "gelu"),
        ("layer_norm_eps", 1e-6),
    ],
)
def test_towers_must_be_the_same(tmp_path: Path, field: str, value: Any) -> None:
    write_json(tmp_path / "config.json", LLAVA_7B_HF)
    changes: dict[str, Any] = {field: value}
    other = ClipConfig(replace(VISION_LARGE_336, **changes), TEXT_LARGE)
    message = f"{field} is {getattr(VISION_LARGE_336, field)}, but that of .* is {value}"
    with pytest.raises(CheckpointError, match=message):
        read_model_config(tmp_path, other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "holds a list; expected a JSON object"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"model_type": "qwen2"}', "neither 'text_config'"),
    ],
)
def test_bad_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_model_config(tmp_path, LARGE_336)
    assert str(tmp_path / "config.json") in str(raised.value)


def test_nothing_there(tmp_path: Path, golden: Path, clip: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="nowhere is not a folder"):
        open_checkpoint(tmp_path / "nowhere", clip)
    with pytest.raises(CheckpointNotFoundError, match="nowhere is not a folder"):
        open_checkpoint(golden / "llava", tmp_path / "nowhere")
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json"):
        open_checkpoint(tmp_path, clip)
    with pytest.raises(CheckpointNotFoundError, match=r"text tower.*--clip DIR"):
        open_checkpoint(golden / "llava")


def test_a_model_in_place_of_clip(golden: Path) -> None:
    with pytest.raises(CheckpointError, match="model_type is 'llava'; supported: clip"):
        open_checkpoint(golden / "llava", golden / "llava")


def test_unknown_part(hf_folder: Folder, clip: Path, rewrite: Rewrite) -> None:
    checkpoint = open_checkpoint(hf_folder[0], clip)
    for ask in (checkpoint.expected, checkpoint.num_parameters, checkpoint.num_bytes):
        with pytest.raises(CheckpointError, match="unknown part 'audio'; known: vision_tower"):
            ask("audio")
    with pytest.raises(CheckpointError, match="unknown part 'audio'"):
        next(checkpoint.parameters("audio"))


def test_other_decoders_take_their_own_defaults(tmp_path: Path) -> None:
    mistral = language(tmp_path, model_type="mistral")
    assert (mistral.sliding_window, mistral.num_kv_heads, mistral.qkv_bias) == (4096, 8, False)
    assert (mistral.intermediate_size, mistral.max_positions) == (14336, 131072)
    assert language(tmp_path, model_type="mistral", sliding_window=None).sliding_window is None
    qwen = language(tmp_path, model_type="qwen2", sliding_window=512)
    assert (qwen.qkv_bias, qwen.output_bias, qwen.mlp_bias) == (True, False, False)
    assert (qwen.sliding_window, qwen.vocab_size) == (None, 151936)
    llama = language(tmp_path, attention_bias=True)
    assert (llama.qkv_bias, llama.output_bias, llama.sliding_window) == (True, True, None)
