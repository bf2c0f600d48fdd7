"""Good folders of every layout and format give the same tensors under the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_recomp.checkpoint import PARTS, Checkpoint, open_checkpoint
from paddle_recomp.errors import CheckpointError
from tests.checkpoint.conftest import Array, Folder, Rewrite
from tests.checkpoint.writers import (
    as_stored,
    read_safetensors_plainly,
    write_safetensors,
    write_sharded,
    write_torch,
)


def tensors(checkpoint: Checkpoint, part: str) -> dict[str, Array]:
    return dict(checkpoint.parameters(part))


def assert_equal(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert set(found) == set(expected)
    for name, array in found.items():
        assert array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.fixture
def reference(golden: Path) -> dict[str, dict[str, Array]]:
    """The golden parameters by part, sorted by hand."""
    model = read_safetensors_plainly(golden / "llava" / "model.safetensors")
    clip = read_safetensors_plainly(golden / "clip" / "model.safetensors")

    def under(arrays: dict[str, Array], prefix: str) -> dict[str, Array]:
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    return {
        "vision_tower": {
            **under(model, "vision_tower."),
            "visual_projection.weight": clip["visual_projection.weight"],
        },
        "text_tower": {
            **under(clip, "text_model."),
            "text_projection.weight": clip["text_projection.weight"],
        },
        "projector": under(model, "multi_modal_projector."),
        "language_model": {
            **under(model, "language_model.model."),
            "lm_head.weight": model["language_model.lm_head.weight"],
        },
    }


@pytest.mark.parametrize("layout", ["llava", "llava_hub_layout"])
@pytest.mark.parametrize("part", PARTS)
def test_golden_folders(golden: Path, clip: Path, reference: Any, layout: str, part: str) -> None:
    checkpoint = open_checkpoint(golden / layout, clip)
    found = tensors(checkpoint, part)
    assert_equal(found, reference[part])
    assert {name: array.shape for name, array in found.items()} == checkpoint.expected(part)
    assert checkpoint.num_parameters(part) == sum(a.size for a in reference[part].values())
    assert checkpoint.num_bytes(part) == sum(a.nbytes for a in reference[part].values())
    assert checkpoint.dtypes(part) == ("float32",)


def test_names_of_transformers_since_4_52(
    hf_folder: Folder, clip: Path, reference: Any, rewrite: Rewrite
) -> None:
    folder, config, arrays = hf_folder
    renamed = {}
    for key, array in arrays.items():
        new = key.replace("language_model.model.", "language_model.")
        renamed["lm_head.weight" if "lm_head" in key else f"model.{new}"] = array
    assert "model.language_model.embed_tokens.weight" in renamed
    config["image_token_id"] = config.pop("image_token_index")
    config["dtype"] = "float32"
    rewrite(folder, config, renamed)
    checkpoint = open_checkpoint(folder, clip)
    assert checkpoint.spec.image_token_id == 7
    for part in PARTS:
        assert_equal(tensors(checkpoint, part), reference[part])


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_original_layout(
    original_folder: Folder, clip: Path, reference: Any, suffix: str, sharded: bool, dtype: str
) -> None:
    folder, _, arrays = original_folder
    arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    if sharded:
        write_sharded(folder, arrays, dtype, suffix)
    elif suffix == "bin":
        write_torch(folder / "pytorch_model.bin", arrays, dtype)
    else:
        write_safetensors(folder / "model.safetensors", arrays, dtype)
    checkpoint = open_checkpoint(folder, clip)
    for part in ("projector", "language_model"):
        expected = {name: as_stored(array, dtype) for name, array in reference[part].items()}
        assert_equal(tensors(checkpoint, part), expected)
        assert checkpoint.dtypes(part) == (dtype,)
        item = 4 if dtype == "float32" else 2
        assert checkpoint.num_bytes(part) == item * checkpoint.num_parameters(part)
    for part in ("vision_tower", "text_tower"):  # from the CLIP folder, with the same weights
        assert_equal(tensors(checkpoint, part), reference[part])
        assert set(checkpoint.expected(part)) == set(reference[part])


def test_own_vision_tower_wins(
    original_folder: Folder, clip: Path, reference: Any, rewrite: Rewrite
) -> None:
    folder, _, arrays = original_folder
    marked = {
        name: array + 1
        for name, array in reference["vision_tower"].items()
        if name != "visual_projection.weight"
    }
    prefix = "model.vision_tower.vision_tower.vision_model."
    arrays |= {prefix + name: array for name, array in marked.items()}
    arrays[f"{prefix}embeddings.position_ids"] = np.arange(65)[None]
    rewrite(folder, None, arrays)
    projection = {"visual_projection.weight": reference["vision_tower"]["visual_projection.weight"]}
    found = tensors(open_checkpoint(folder, clip), "vision_tower")
    assert_equal(found, {**marked, **projection})


@pytest.mark.parametrize("frozen", [True, False, None])
def test_a_trained_vision_tower_has_to_be_in_the_folder(
    original_folder: Folder, clip: Path, reference: Any, rewrite: Rewrite, frozen: bool | None
) -> None:
    folder, config, arrays = original_folder
    if frozen is not None:
        config["unfreeze_mm_vision_tower"] = not frozen
    rewrite(folder, config, arrays)
    if frozen is not False:
        found = tensors(open_checkpoint(folder, clip), "vision_tower")
        assert_equal(found, reference["vision_tower"])
        return
    with pytest.raises(CheckpointError, match=r"unfreeze_mm_vision_tower is true.*found none"):
        open_checkpoint(folder, clip)
    key = "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"
    arrays[key] = reference["vision_tower"]["embeddings.class_embedding"]
    rewrite(folder, None, arrays)
    with pytest.raises(CheckpointError, match="vision_tower: missing"):
        open_checkpoint(folder, clip)


@pytest.mark.parametrize("named", [True, False])
def test_linear_projector(
    original_folder: Folder, clip: Path, rewrite: Rewrite, named: bool
) -> None:
    folder, config, arrays = original_folder
    weight, bias = arrays["model.mm_projector.0.weight"], arrays["model.mm_projector.0.bias"]
    kept = {key: array for key, array in arrays.items() if "mm_projector" not in key}
    kept |= {"model.mm_projector.weight": weight, "model.mm_projector.bias": bias}
    del config["mm_projector_type"]  # absent before LLaVA 1.5, when there was only this one
    if named:
        config["mm_projector_type"] = "linear"
    rewrite(folder, config, kept)
    checkpoint = open_checkpoint(folder, clip)
    assert checkpoint.spec.projector.kind == "linear"
    assert_equal(tensors(checkpoint, "projector"), {"linear.weight": weight, "linear.bias": bias})


@pytest.mark.parametrize("with_head", [True, False])
def test_tied_embeddings_have_no_head(
    hf_folder: Folder, clip: Path, rewrite: Rewrite, with_head: bool
) -> None:
    folder, config, arrays = hf_folder
    config["text_config"]["tie_word_embeddings"] = True
    if not with_head:
        del arrays["language_model.lm_head.weight"]
    rewrite(folder, config, arrays)
    checkpoint = open_checkpoint(folder, clip)
    assert checkpoint.spec.language.tie_word_embeddings
    assert "lm_head.weight" not in tensors(checkpoint, "language_model")
    assert "lm_head.weight" not in checkpoint.expected("language_model")


def test_projector_without_bias(hf_folder: Folder, clip: Path, rewrite: Rewrite) -> None:
    folder, config, arrays = hf_folder
    config["multimodal_projector_bias"] = False
    kept = {k: v for k, v in arrays.items() if not ("projector" in k and k.endswith("bias"))}
    rewrite(folder, config, kept)
    checkpoint = open_checkpoint(folder, clip)
    assert set(tensors(checkpoint, "projector")) == {"linear_1.weight", "linear_2.weight"}


def test_grouped_queries_and_biases(hf_folder: Folder, clip: Path, rewrite: Rewrite) -> None:
    folder, config, arrays = hf_folder
    config["text_config"] |= {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "attention_bias": True,
        "mlp_bias": True,
    }
    shapes = {"q_proj": (32, 64), "k_proj": (16, 64), "v_proj": (16, 64), "o_proj": (64, 32)}
    for key in [key for key in arrays if key.startswith("language_model.model.layers.")]:
        name = key.split(".")[-2]
        if name in shapes:
            arrays[key] = np.zeros(shapes[name], np.float32)
        if name.endswith("_proj"):
            arrays[key.replace("weight", "bias")] = np.zeros(len(arrays[key]), np.float32)
    rewrite(folder, config, arrays)
    found = tensors(open_checkpoint(folder, clip), "language_model")
    assert found["layers.2.self_attn.k_proj.weight"].shape == (16, 64)
    assert found["layers.2.self_attn.o_proj.bias"].shape == (64,)
    assert found["layers.0.mlp.down_proj.bias"].shape == (64,)


def test_clip_inside_the_model_folder(hf_folder: Folder, clip_folder: Folder, golden: Path) -> None:
    folder, _, _ = hf_folder
    clip_folder[0].rename(folder / "clip")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.clip_dir == folder / "clip"
    assert checkpoint.spec == open_checkpoint(golden / "llava", golden / "clip").spec


def test_clip_as_old_writers_left_it(
    hf_folder: Folder, clip_folder: Folder, reference: Any
) -> None:
    clip, _, arrays = clip_folder
    (clip / "model.safetensors").unlink()
    arrays["text_model.embeddings.position_ids"] = np.arange(32)[None]
    arrays["vision_model.embeddings.position_ids"] = np.arange(65)[None]
    write_torch(clip / "pytorch_model.bin", arrays)
    checkpoint = open_checkpoint(hf_folder[0], clip)
    assert_equal(tensors(checkpoint, "text_tower"), reference["text_tower"])


def test_arrays_cannot_change_the_file(golden: Path, clip: Path) -> None:
    _, array = next(open_checkpoint(golden / "llava", clip).parameters("projector"))
    with pytest.raises(ValueError, match="read-only"):
        array[:] = 0
