"""Folders whose parameters are not exactly those that the config asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddle_recomp.checkpoint import open_checkpoint
from paddle_recomp.errors import CheckpointError, CheckpointNotFoundError
from tests.checkpoint.conftest import Folder, Rewrite
from tests.checkpoint.writers import write_json, write_safetensors, write_sharded


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("language_model.model.layers.1.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("multi_modal_projector.linear_2.bias", "projector: missing linear_2.bias"),
        ("vision_tower.pre_layrnorm.weight", "vision_tower: missing pre_layrnorm.weight"),
    ],
)
def test_missing(hf_folder: Folder, clip: Path, rewrite: Rewrite, key: str, name: str) -> None:
    folder, _, arrays = hf_folder
    del arrays[key]
    rewrite(folder, None, arrays)
    with pytest.raises(CheckpointError, match=name) as raised:
        open_checkpoint(folder, clip)
    assert str(folder) in str(raised.value)
    assert "missing" in str(raised.value)


def test_missing_in_clip(golden: Path, clip_folder: Folder, rewrite: Rewrite) -> None:
    clip, _, arrays = clip_folder
    for key in ("text_projection.weight", "vision_model.post_layernorm.bias"):
        rewrite(clip, None, {name: array for name, array in arrays.items() if name != key})
        with pytest.raises(CheckpointError, match=f"missing {key.removeprefix('vision_model.')}"):
            open_checkpoint(golden / "llava", clip)


def test_many_missing_in_one_line(hf_folder: Folder, clip: Path, rewrite: Rewrite) -> None:
    folder, _, arrays = hf_folder
    kept = {key: array for key, array in arrays.items() if ".layers.2." not in key}
    rewrite(folder, None, kept)
    with pytest.raises(CheckpointError, match=r"\(and 13 more\)") as raised:
        open_checkpoint(folder, clip)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "key",
    [
        "language_model.model.layers.3.mlp.up_proj.weight",
        "language_model.model.layers.0.self_attn.q_proj.bias",
        "vision_tower.head.weight",
        "multi_modal_projector.linear_3.weight",
        "image_newline",
    ],
)
def test_unexpected(hf_folder: Folder, clip: Path, rewrite: Rewrite, key: str) -> None:
    folder, _, arrays = hf_folder
    rewrite(folder, None, {**arrays, key: np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match=f"unexpected {key}"):
        open_checkpoint(folder, clip)


def test_unexpected_in_the_original_layout(
    original_folder: Folder, clip: Path, rewrite: Rewrite
) -> None:
    folder, _, arrays = original_folder
    for key in ("model.image_newline", "model.mm_projector.1.weight", "lm_head.bias"):
        rewrite(folder, None, {**arrays, key: np.zeros(3, np.float32)})
        with pytest.raises(CheckpointError, match=f"unexpected {key}"):
            open_checkpoint(folder, clip)


def test_shape(hf_folder: Folder, clip: Path, rewrite: Rewrite) -> None:
    folder, _, arrays = hf_folder
    key = "language_model.model.embed_tokens.weight"
    rewrite(folder, None, {**arrays, key: np.zeros((192, 64), np.float32)})
    message = rf"{key} is \[192, 64\] in model.safetensors, expected \[160, 64\]"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder, clip)


def test_integers_are_no_parameters(hf_folder: Folder, clip: Path, rewrite: Rewrite) -> None:
    folder, _, arrays = hf_folder
    key = "language_model.model.norm.weight"
    rewrite(folder, None, {**arrays, key: np.zeros(64, np.int64)})
    with pytest.raises(CheckpointError, match=f"{key} is int64 in model.safetensors"):
        open_checkpoint(folder, clip)


def test_two_keys_for_one_parameter(hf_folder: Folder, clip: Path, rewrite: Rewrite) -> None:
    folder, _, arrays = hf_folder
    new = "model.language_model.norm.weight"
    rewrite(folder, None, {**arrays, new: np.zeros(64, np.float32)})
    with pytest.raises(CheckpointError, match=f"{new} are the same parameter"):
        open_checkpoint(folder, clip)


def test_incomplete_own_vision_tower(original_folder: Folder, clip: Path, rewrite: Rewrite) -> None:
    folder, _, arrays = original_folder
    key = "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"
    rewrite(folder, None, {**arrays, key: np.zeros(64, np.float32)})
    with pytest.raises(CheckpointError, match="vision_tower: missing"):
        open_checkpoint(folder, clip)


def test_no_weights(hf_folder: Folder, clip: Path) -> None:
    (hf_folder[0] / "model.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"holds no weights; expected model\.safe"):
        open_checkpoint(hf_folder[0], clip)


def test_git_lfs_pointer(hf_folder: Folder, clip: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
    (hf_folder[0] / "model.safetensors").write_bytes(pointer)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        open_checkpoint(hf_folder[0], clip)


@pytest.mark.parametrize(
    "name", ["../w.bin", "/etc/w.bin", "sub/w.bin", "..", "sub\\w.bin", "w.pt", "", 7, None]
)
def test_index_must_name_plain_files(original_folder: Folder, clip: Path, name: object) -> None:
    folder, _, _ = original_folder
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": {"lm_head.weight": name}})
    with pytest.raises(CheckpointError, match=r"lm_head.weight is said to lie in"):
        open_checkpoint(folder, clip)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}])
def test_index_without_a_map(original_folder: Folder, clip: Path, index: object) -> None:
    write_json(original_folder[0] / "pytorch_model.bin.index.json", index)
    with pytest.raises(CheckpointError, match="'weight_map' is missing"):
        open_checkpoint(original_folder[0], clip)


def test_missing_shard(original_folder: Folder, clip: Path) -> None:
    folder, _, arrays = original_folder
    write_sharded(folder, arrays)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    message = r"pytorch_model-00002-of-00002.bin does not exist; .*index.json expects \S+ there"
    with pytest.raises(CheckpointNotFoundError, match=message):
        open_checkpoint(folder, clip)


def test_key_missing_in_its_shard(original_folder: Folder, clip: Path) -> None:
    folder, _, arrays = original_folder
    write_sharded(folder, arrays, suffix="safetensors")
    path = folder / "model-00001-of-00002.safetensors"
    half = dict(list(arrays.items())[: len(arrays) // 2])
    gone = next(iter(half))
    write_safetensors(path, {key: array for key, array in half.items() if key != gone})
    with pytest.raises(CheckpointError, match=f"00001-of-00002.safetensors lacks {gone}"):
        open_checkpoint(folder, clip)


def test_key_in_two_shards(original_folder: Folder, clip: Path) -> None:
    folder, _, arrays = original_folder
    write_sharded(folder, arrays, suffix="safetensors")
    half = dict(list(arrays.items())[len(arrays) // 2 :])
    twice = next(iter(arrays))
    write_safetensors(folder / "model-00002-of-00002.safetensors", {**half, twice: arrays[twice]})
    with pytest.raises(CheckpointError, match=f"{twice} is in both .*00001.* and .*00002"):
        open_checkpoint(folder, clip)
