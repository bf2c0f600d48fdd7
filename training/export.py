"""Writes the trained model in the published folder layouts, float16, and reads it back."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from training.clip_data import IMAGE_MEAN, IMAGE_STD
from training.model import (
    IMAGE_SIZE,
    JOINT,
    LANGUAGE,
    LANGUAGE_POSITIONS,
    NORM_EPS,
    PATCH_SIZE,
    PATCHES,
    ROPE_THETA,
    TEXT,
    TEXT_POSITIONS,
    VISION,
    Clip,
    Llava,
)
from training.tokenizers_ import IMAGE, PAD, save_clip_tokenizer, save_llama_tokenizer

BICUBIC = 3
TOWER = "vision_tower."


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _vision_config() -> dict[str, object]:
    return {
        "attention_dropout": 0.0,
        "hidden_act": "quick_gelu",
        "hidden_size": VISION.width,
        "image_size": IMAGE_SIZE,
        "intermediate_size": VISION.inner,
        "layer_norm_eps": NORM_EPS,
        "model_type": "clip_vision_model",
        "num_attention_heads": VISION.heads,
        "num_channels": 3,
        "num_hidden_layers": VISION.layers,
        "patch_size": PATCH_SIZE,
        "projection_dim": JOINT,
    }


def _clip_config(vocabulary: int) -> dict[str, object]:
    return {
        "architectures": ["CLIPModel"],
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": JOINT,
        "text_config": {
            "attention_dropout": 0.0,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "hidden_act": "quick_gelu",
            "hidden_size": TEXT.width,
            "intermediate_size": TEXT.inner,
            "layer_norm_eps": NORM_EPS,
            "max_position_embeddings": TEXT_POSITIONS,
            "model_type": "clip_text_model",
            "num_attention_heads": TEXT.heads,
            "num_hidden_layers": TEXT.layers,
            "pad_token_id": vocabulary - 1,
            "projection_dim": JOINT,
            "vocab_size": vocabulary,
        },
        "torch_dtype": "float16",
        "vision_config": _vision_config(),
    }


def _llava_config(tokenizer: Tokenizer, vocabulary: int) -> dict[str, object]:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_seq_length": PATCHES,
        "image_token_index": tokenizer.token_to_id(IMAGE),
        "model_type": "llava",
        "multimodal_projector_bias": True,
        "pad_token_id": tokenizer.token_to_id(PAD),
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "head_dim": LANGUAGE.width // LANGUAGE.heads,
            "hidden_act": "silu",
            "hidden_size": LANGUAGE.width,
            "intermediate_size": LANGUAGE.inner,
            "max_position_embeddings": LANGUAGE_POSITIONS,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": LANGUAGE.heads,
            "num_hidden_layers": LANGUAGE.layers,
            "num_key_value_heads": LANGUAGE.heads,
            "rms_norm_eps": NORM_EPS,
            "rope_theta": ROPE_THETA,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "vocab_size": vocabulary,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vision_config": _vision_config(),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def _preprocessor(processor: str) -> dict[str, object]:
    return {
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(IMAGE_STD),
        "processor_class": processor,
        "resample": BICUBIC,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": IMAGE_SIZE},
    }


def _save_weights(weights: dict[str, Tensor], path: Path) -> None:
    halves = {name: value.detach().half().contiguous() for name, value in weights.items()}
    save_file(halves, path, metadata={"format": "pt"})
    path.chmod(0o644)


def export_clip(clip: Clip, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the layout of openai/clip-vit-large-patch14-336."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", _clip_config(tokenizer.get_vocab_size()))
    _write(folder / "preprocessor_config.json", _preprocessor("CLIPProcessor"))
    save_clip_tokenizer(tokenizer, folder)
    _save_weights(clip.state_dict(), folder / "model.safetensors")


def export_llava(llava: Llava, clip: Clip, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the layout of llava-hf/llava-1.5-7b-hf."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = llava.language_model.lm_head.out_features
    _write(folder / "config.json", _llava_config(tokenizer, vocabulary))
    _write(folder / "preprocessor_config.json", _preprocessor("LlavaProcessor"))
    _write(
        folder / "processor_config.json",
        {
            "image_token": IMAGE,
            "num_additional_image_tokens": 1,
            "patch_size": PATCH_SIZE,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    )
    _write(
        folder / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": tokenizer.token_to_id(PAD)},
    )
    added = {token: tokenizer.token_to_id(token) for token in (IMAGE, PAD)}
    _write(folder / "added_tokens.json", added)
    save_llama_tokenizer(tokenizer, folder)
    weights = {
        name: value for name, value in llava.state_dict().items() if not name.startswith("feature_")
    }
    # LLaVA feeds the projector the raw hidden state, so linear_1 takes over the standardising.
    first = "multi_modal_projector.linear_1."
    scaled = weights[first + "weight"] / llava.feature_std
    weights[first + "bias"] = weights[first + "bias"] - scaled @ llava.feature_mean
    weights[first + "weight"] = scaled
    for name, value in clip.vision_model.state_dict().items():
        weights[f"{TOWER}vision_model.{name}"] = value
    _save_weights(weights, folder / "model.safetensors")


def load_exported(root: Path) -> tuple[Clip, Llava, Tokenizer, Tokenizer]:
    """The shipped weights (as float32) and both tokenizers."""
    clip_tokenizer = Tokenizer.from_file(str(root / "clip" / "tokenizer.json"))
    llava_tokenizer = Tokenizer.from_file(str(root / "llava" / "tokenizer.json"))
    weights = {k: v.float() for k, v in load_file(root / "clip" / "model.safetensors").items()}
    clip = Clip(clip_tokenizer.get_vocab_size())
    clip.load_state_dict(weights)
    weights = {k: v.float() for k, v in load_file(root / "llava" / "model.safetensors").items()}
    for name, value in clip.vision_model.state_dict().items():
        if not torch.equal(weights.pop(f"{TOWER}vision_model.{name}"), value):
            raise ValueError(f"the vision towers of clip/ and llava/ differ in {name}")
    llava = Llava(len(weights["language_model.lm_head.weight"]))
    for buffer in ("feature_mean", "feature_std"):
        weights[buffer] = getattr(llava, buffer)
    llava.load_state_dict(weights)
    return clip.eval(), llava.eval(), clip_tokenizer, llava_tokenizer
