"""config.json -> specs: the fields of each layout, and the defaults that its writers leave out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from paddle_recomp.checkpoint.fields import (
    Json,
    boolean,
    choice,
    integer,
    integers,
    number,
    section,
    string,
)
from paddle_recomp.checkpoint.spec import (
    LANGUAGE_MODELS,
    LanguageModelSpec,
    ModelSpec,
    ProjectorSpec,
    TextTowerSpec,
    VisionTowerSpec,
)
from paddle_recomp.errors import CheckpointError, CheckpointNotFoundError
from paddle_recomp.files import is_file, is_folder
from paddle_recomp.json_files import one_line, read_json, shown

_LANGUAGE_DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
    },
    "qwen2": {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    },
    "mistral": {
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
}
"""The defaults of transformers for fields that a config.json leaves out, where they differ between
model types."""


class ClipConfig(NamedTuple):
    """The content of the CLIP folder's config.json."""

    vision: VisionTowerSpec
    text: TextTowerSpec


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name in front of an error about one of its fields."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read_config(folder: Path) -> dict[str, Any]:
    if not is_folder(folder):
        raise CheckpointNotFoundError(f"{folder} is not a folder")
    return read_json(folder / "config.json")


def read_clip_config(folder: Path) -> ClipConfig:
    """The towers of a CLIP folder.

    Raises: CheckpointNotFoundError without config.json; CheckpointError for a field that cannot be
    used."""
    config = _read_config(folder)
    with _naming(folder / "config.json"):
        choice(config, "model_type", ("clip",))
        # The projections take the top-level width; those of the two sections can be stale.
        width = integer(config, "projection_dim", 512)
        return ClipConfig(
            vision=_vision(_clip_section(config, "vision_config"), width),
            text=_text(_clip_section(config, "text_config"), width),
        )


def _clip_section(config: Json, name: str) -> Json:
    """Early writers put the section under `<name>_dict`, some put it under both."""
    return section(config, name if config.get(name) is not None else f"{name}_dict")


def _activation(config: Json) -> Literal["quick_gelu", "gelu"]:
    value = choice(config, "hidden_act", ("quick_gelu", "gelu"), "quick_gelu")
    return "gelu" if value == "gelu" else "quick_gelu"


def _vision(config: Json, projection_dim: int) -> VisionTowerSpec:
    choice(config, "model_type", ("clip_vision_model",), "clip_vision_model")
    if (channels := integer(config, "num_channels", 3)) != 3:
        raise CheckpointError(f"num_channels is {channels}; supported: 3")
    return VisionTowerSpec(
        image_size=integer(config, "image_size", 224),
        patch_size=integer(config, "patch_size", 32),
        hidden_size=integer(config, "hidden_size", 768),
        intermediate_size=integer(config, "intermediate_size", 3072),
        num_layers=integer(config, "num_hidden_layers", 12),
        num_heads=integer(config, "num_attention_heads", 12),
        hidden_act=_activation(config),
        layer_norm_eps=number(config, "layer_norm_eps", 1e-5),
        projection_dim=projection_dim,
    )


def _text(config: Json, projection_dim: int) -> TextTowerSpec:
    return TextTowerSpec(
        vocab_size=integer(config, "vocab_size", 49408),
        max_positions=integer(config, "max_position_embeddings", 77),
        hidden_size=integer(config, "hidden_size", 512),
        intermediate_size=integer(config, "intermediate_size", 2048),
        num_layers=integer(config, "num_hidden_layers", 12),
        num_heads=integer(config, "num_attention_heads", 8),
        hidden_act=_activation(config),
        layer_norm_eps=number(config, "layer_norm_eps", 1e-5),
        projection_dim=projection_dim,
        eos_token_id=integer(config, "eos_token_id", 49407),
    )


def read_model_config(folder: Path, clip: ClipConfig) -> ModelSpec:
    """The whole model: a LLaVA folder of either layout, with the towers of its CLIP folder.

    Raises: CheckpointNotFoundError without config.json; CheckpointError for a field that cannot be
    used, or when its vision tower differs from CLIP's."""
    config = _read_config(folder)
    ends = _generation_ends(folder / "generation_config.json")
    with _naming(folder / "config.json"):
        if "mm_vision_tower" in config:
            return _original(config, ends or _ends(config), clip)
        if "text_config" in config or "vision_config" in config:
            return _llava_hf(config, ends or _ends(config), clip)
        raise CheckpointError(
            "neither 'text_config' (llava-hf layout) nor 'mm_vision_tower' (original layout) "
            f"is there; model_type is {one_line(repr(config.get('model_type')))}"
        )


def _generation_ends(path: Path) -> tuple[int, ...]:
    """The end tokens of generation_config.json, where it has any: config.json often has only one of
    them."""
    if not is_file(path):
        return ()
    with _naming(path):
        return _ends(read_json(path))


def _ends(config: Json) -> tuple[int, ...]:
    """The end tokens of a file: of the whole, or else of its language model."""
    if config.get("eos_token_id") is not None:
        return integers(config, "eos_token_id")
    inner = config.get("text_config")
    return _ends(inner) if isinstance(inner, dict) else ()


def _llava_hf(config: Json, ends: tuple[int, ...], clip: ClipConfig) -> ModelSpec:
    choice(config, "model_type", ("llava",))
    vision = _vision(section(config, "vision_config"), clip.vision.projection_dim)
    _check_same_tower(vision, clip.vision)
    text_config = section(config, "text_config")
    tied = boolean(config, "tie_word_embeddings", False)
    language = _language(text_config, ends, boolean(text_config, "tie_word_embeddings", tied))
    token_field = "image_token_id" if "image_token_id" in config else "image_token_index"
    choice(config, "vision_feature_select_strategy", ("default",), "default")
    return ModelSpec(
        vision=vision,
        text=clip.text,
        projector=ProjectorSpec(
            kind="mlp2x_gelu",
            in_features=vision.hidden_size,
            out_features=language.hidden_size,
            bias=boolean(config, "multimodal_projector_bias", True),
            hidden_act=string(config, "projector_hidden_act", "gelu"),
        ),
        language=language,
        image_token_id=integer(config, token_field, 32000),
        vision_feature_layer=integer(config, "vision_feature_layer", -2),
        select="default",
        layout="llava_hf",
    )


def _check_same_tower(own: VisionTowerSpec, clip: VisionTowerSpec) -> None:
    for item in fields(own):
        mine, theirs = getattr(own, item.name), getattr(clip, item.name)
        if mine != theirs:
            raise CheckpointError(
                f"the vision tower's {item.name} is {mine}, but that of the CLIP folder is "
                f"{theirs}; text and image must come from the same CLIP"
            )


def _original(config: Json, ends: tuple[int, ...], clip: ClipConfig) -> ModelSpec:
    choice(config, "model_type", ("llava", "llava_llama"))
    _check_named_tower(string(config, "mm_vision_tower"), clip.vision)
    if boolean(config, "s2", False):
        raise CheckpointError("s2 is true; pictures at several sizes are not supported")
    if boolean(config, "mm_use_im_start_end", False):
        raise CheckpointError("mm_use_im_start_end is true; prompts with it are not supported")
    choice(config, "mm_patch_merge_type", ("flat",), "flat")
    choice(config, "mm_vision_select_feature", ("patch",), "patch")
    kind = choice(config, "mm_projector_type", ("mlp2x_gelu", "linear"), "linear")
    tied = boolean(config, "tie_word_embeddings", False)
    language = _language({**config, "model_type": "llama"}, ends, tied)
    aspect = choice(config, "image_aspect_ratio", ("pad", "square"), "square")
    return ModelSpec(
        vision=clip.vision,
        text=clip.text,
        projector=ProjectorSpec(
            kind="linear" if kind == "linear" else "mlp2x_gelu",
            in_features=integer(config, "mm_hidden_size"),
            out_features=language.hidden_size,
            bias=True,
            hidden_act="gelu",
        ),
        language=language,
        image_token_id=None,
        vision_feature_layer=integer(config, "mm_vision_select_layer", -2),
        select="patch",
        layout="llava_original",
        pad_to_square=aspect == "pad",
        trained_vision_tower=boolean(config, "unfreeze_mm_vision_tower", False),
    )


def _check_named_tower(name: str, clip: VisionTowerSpec) -> None:
    """The names of towers end with the side of a picture, which those of OpenAI leave out where it
    is 224, and behind that of a patch.

    Raises: CheckpointError where the CLIP folder has other ones."""
    if named := re.search(r"patch-?([0-9]{1,9})(?:-([0-9]{1,9})(?:px)?)?/?$", name.lower()):
        patch, picture = int(named[1]), int(named[2] or 224)
    elif named := re.search(r"-([0-9]{3,4})(?:px)?/?$", name.lower()):
        patch, picture = clip.patch_size, int(named[1])
    else:
        return
    if (patch, picture) != (clip.patch_size, clip.image_size):
        raise CheckpointError(
            f"mm_vision_tower is {shown(name)}: pictures of {picture} pixels, patches of {patch}; "
            f"the CLIP folder's tower takes {clip.image_size} and {clip.patch_size}"
        )


def _language(config: Json, ends: tuple[int, ...], tied: bool) -> LanguageModelSpec:
    model_type = choice(config, "model_type", LANGUAGE_MODELS, "llama")
    absent = _LANGUAGE_DEFAULTS[model_type]
    choice(config, "hidden_act", ("silu",), "silu")
    hidden_size = integer(config, "hidden_size", 4096)
    num_heads = integer(config, "num_attention_heads", 32)
    theta, scaling = _rope(config)
    attention_bias = model_type == "llama" and boolean(config, "attention_bias", False)
    spec = LanguageModelSpec(
        vocab_size=integer(config, "vocab_size", absent["vocab_size"]),
        hidden_size=hidden_size,
        intermediate_size=integer(config, "intermediate_size", absent["intermediate_size"]),
        num_layers=integer(config, "num_hidden_layers", 32),
        num_heads=num_heads,
        num_kv_heads=integer(
            config, "num_key_value_heads", absent.get("num_key_value_heads", num_heads)
        ),
        head_dim=integer(config, "head_dim", hidden_size // max(num_heads, 1)),
        max_positions=integer(config, "max_position_embeddings", absent["max_position_embeddings"]),
        rms_norm_eps=number(config, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=tied,
        qkv_bias=attention_bias or model_type == "qwen2",
        output_bias=attention_bias,
        mlp_bias=model_type == "llama" and boolean(config, "mlp_bias", False),
        eos_token_ids=ends,
        model_type=model_type,
        sliding_window=_sliding_window(config, model_type),
    )
    if config.get("head_dim") is None and hidden_size % num_heads:
        raise CheckpointError(
            f"hidden_size is {hidden_size}, not a multiple of num_attention_heads, {num_heads}"
        )
    return spec


def _sliding_window(config: Json, model_type: str) -> int | None:
    if model_type == "qwen2" and boolean(config, "use_sliding_window", False):
        raise CheckpointError(
            "use_sliding_window is true, which lets some layers attend to a window and some to "
            "all; a Qwen2 can be read where all attend to all"
        )
    if model_type != "mistral" or config.get("sliding_window", 4096) is None:
        return None
    return integer(config, "sliding_window", 4096)


def _rope(config: Json) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of the rotary positions, from the old fields or `rope_parameters`."""
    found: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        if config.get(name) is not None:
            found.update(section(config, name))
    theta = number(found if "rope_theta" in found else config, "rope_theta", 10000.0)
    found.pop("rope_theta", None)
    old_name = found.pop("type", "default")
    rope_type = found.pop("rope_type", old_name)
    return theta, None if rope_type == "default" else {"rope_type": rope_type, **found}
