from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoint.writers import (
    read_safetensors_plainly,
    write_json,
    write_safetensors,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "hf_llava_tiny"

Array = np.ndarray[Any, Any]
Folder = tuple[Path, dict[str, Any], dict[str, Array]]
"""A writable folder with the content of its config and of its weights."""

ORIGINAL_CONFIG = {
    "model_type": "llava",
    "architectures": ["LlavaLlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "image_aspect_ratio": "pad",
    "intermediate_size": 160,
    "max_position_embeddings": 256,
    "mm_hidden_size": 64,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-tiny-patch14-112",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_mm_proj": True,
    "vocab_size": 160,
}


@pytest.fixture
def golden() -> Path:
    return GOLDEN


@pytest.fixture
def clip() -> Path:
    return GOLDEN / "clip"


def _copy(name: str, target: Path) -> Folder:
    target.mkdir()
    config = json.loads((GOLDEN / name / "config.json").read_text())
    write_json(target / "config.json", config)
    shutil.copy(GOLDEN / name / "model.safetensors", target)
    return target, config, read_safetensors_plainly(target / "model.safetensors")


@pytest.fixture
def hf_folder(tmp_path: Path) -> Folder:
    """The golden LLaVA as transformers 5 saves it, to be changed."""
    return _copy("llava", tmp_path / "llava_hf")


@pytest.fixture
def clip_folder(tmp_path: Path) -> Folder:
    """The golden CLIP, to be changed."""
    return _copy("clip", tmp_path / "clip_copy")


@pytest.fixture
def original_folder(tmp_path: Path) -> Folder:
    """The golden LLaVA's projector and language model under the original keys; no weights are
    written, so that each test chooses the format."""
    folder = tmp_path / "original"
    folder.mkdir()
    write_json(folder / "config.json", ORIGINAL_CONFIG)
    arrays: dict[str, Array] = {}
    for key, array in read_safetensors_plainly(GOLDEN / "llava" / "model.safetensors").items():
        if key.startswith("vision_tower."):
            continue
        for stored, original in (
            ("language_model.", ""),
            ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
            ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ):
            if key.startswith(stored):
                arrays[original + key.removeprefix(stored)] = array
    return folder, dict(ORIGINAL_CONFIG), arrays


Rewrite = Callable[..., None]


@pytest.fixture
def rewrite() -> Rewrite:
    """Writes a folder's config and, as safetensors, its weights again."""

    def write(folder: Path, config: Any = None, arrays: Any = None, dtype: Any = None) -> None:
        if config is not None:
            write_json(folder / "config.json", config)
        if arrays is not None:
            write_safetensors(folder / "model.safetensors", arrays, dtype)

    return write
