"""Checkpoints of real shapes with random weights, in the published layouts, written as a stream.

    python -m benchmarks.random_checkpoint tiny-llava-1.1b build/checkpoints

Speed and memory depend on shapes only, so they can be measured without a published checkpoint. The
tokenizers are the demo model's, with the end of text at the id that the shape has for it."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from paddle_recomp.checkpoint import open_checkpoint
from paddle_recomp.checkpoint.names import VISUAL_PROJECTION, Shapes, expected_shapes
from paddle_recomp.checkpoint.spec import (
    LanguageModelSpec,
    ModelSpec,
    ProjectorSpec,
    TextTowerSpec,
    VisionTowerSpec,
)
from paddle_recomp.vlm.demo import DEMO, demo_folder
from paddle_recomp.vlm.loading import find_checkpoint

SHARD_BYTES = 2 * 2**30
CHUNK = 2**22
SPREAD = 0.02

VIT_L_336 = VisionTowerSpec(336, 14, 1024, 4096, 24, 16, "quick_gelu", 1e-5, 768)
CLIP_TEXT_L = TextTowerSpec(49408, 77, 768, 3072, 12, 12, "quick_gelu", 1e-5, 768, 49407)


def _llava(language: LanguageModelSpec) -> ModelSpec:
    projector = ProjectorSpec("mlp2x_gelu", 1024, language.hidden_size, True, "gelu")
    return ModelSpec(VIT_L_336, CLIP_TEXT_L, projector, language, 32000, -2, "default", "llava_hf")


def _llama(width: int, inner: int, layers: int, heads: int, kv_heads: int) -> LanguageModelSpec:
    return LanguageModelSpec(
        vocab_size=32064,
        hidden_size=width,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width // heads,
        max_positions=4096,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        tie_word_embeddings=False,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        eos_token_ids=(2,),
    )


SHAPES: dict[str, ModelSpec] = {
    "llava-1.5-7b": _llava(_llama(4096, 11008, 32, 32, 32)),
    "tiny-llava-1.1b": _llava(_llama(2048, 5632, 22, 32, 4)),
}


def spec_of(shape: str) -> ModelSpec:
    """The spec of a shape in SHAPES, or of the embedded demo from its own checkpoint."""
    return find_checkpoint(DEMO).spec if shape == DEMO else SHAPES[shape]


LLAVA_KEYS = {
    "vision_tower": "vision_tower.vision_model.",
    "projector": "multi_modal_projector.",
    "language_model": "language_model.model.",
}


def llava_shapes(spec: ModelSpec) -> Shapes:
    """Stored keys of the LLaVA folder, as published."""
    shapes: Shapes = {}
    for part, prefix in LLAVA_KEYS.items():
        for name, shape in expected_shapes(spec)[part].items():
            if name.startswith("lm_head."):
                shapes[f"language_model.{name}"] = shape
            elif name != VISUAL_PROJECTION:
                shapes[prefix + name] = shape
    return shapes


def clip_shapes(spec: ModelSpec) -> Shapes:
    """Stored keys of the CLIP folder, as published."""
    expected = expected_shapes(spec)
    shapes: Shapes = {"logit_scale": ()}
    for part, prefix in (("vision_tower", "vision_model."), ("text_tower", "text_model.")):
        for name, shape in expected[part].items():
            plain = name in (VISUAL_PROJECTION, "text_projection.weight")
            shapes[name if plain else prefix + name] = shape
    return shapes


def vision_config(spec: VisionTowerSpec) -> dict[str, Any]:
    """As published."""
    return {
        "model_type": "clip_vision_model",
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "hidden_act": spec.hidden_act,
        "layer_norm_eps": spec.layer_norm_eps,
        "projection_dim": spec.projection_dim,
    }


def llava_config(spec: ModelSpec) -> dict[str, Any]:
    """config.json of the LLaVA folder."""
    llama = spec.language
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": spec.image_token_id,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": spec.vision_feature_layer,
        "vision_feature_select_strategy": spec.select,
        "torch_dtype": "float16",
        "vision_config": vision_config(spec.vision),
        "text_config": {
            "model_type": "llama",
            "vocab_size": llama.vocab_size,
            "hidden_size": llama.hidden_size,
            "intermediate_size": llama.intermediate_size,
            "num_hidden_layers": llama.num_layers,
            "num_attention_heads": llama.num_heads,
            "num_key_value_heads": llama.num_kv_heads,
            "max_position_embeddings": llama.max_positions,
            "rms_norm_eps": llama.rms_norm_eps,
            "rope_theta": llama.rope_theta,
            "bos_token_id": 1,
            "eos_token_id": llama.eos_token_ids[0],
        },
    }


def clip_config(spec: ModelSpec) -> dict[str, Any]:
    """config.json of the CLIP folder."""
    text = spec.text
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": text.projection_dim,
        "vision_config": vision_config(spec.vision),
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.max_positions,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "hidden_act": text.hidden_act,
            "layer_norm_eps": text.layer_norm_eps,
            "projection_dim": text.projection_dim,
            "bos_token_id": text.eos_token_id - 1,
            "eos_token_id": text.eos_token_id,
        },
    }


Values = Callable[[str, int, np.random.Generator], Iterator[np.ndarray]]
"""A parameter's name and size -> its numbers, chunk by chunk."""


def write_checkpoint(
    spec: ModelSpec,
    llava: Path,
    seed: int,
    progress: Progress,
    shard_bytes: int = SHARD_BYTES,
    values: Values | None = None,
) -> None:
    """A LLaVA folder with its CLIP folder inside; `values` draws the numbers.

    Raises: CheckpointError when the written folder is no checkpoint."""
    clip = llava / "clip"
    clip.mkdir(parents=True, exist_ok=True)
    write_text_files(spec, llava, clip)
    write_weights(clip, clip_shapes(spec), seed, progress, shard_bytes, values)
    write_weights(llava, llava_shapes(spec), seed + 1, progress, shard_bytes, values)
    open_checkpoint(llava)


def write_weights(
    folder: Path,
    shapes: Shapes,
    seed: int,
    progress: Progress,
    shard_bytes: int,
    values: Values | None = None,
) -> None:
    """Shards of float16 numbers, chunk by chunk, with their index."""
    shards: list[Shapes] = [{}]
    for key, shape in shapes.items():
        filled = sum(2 * math.prod(s) for s in shards[-1].values())
        if shards[-1] and filled + 2 * math.prod(shape) > shard_bytes:
            shards.append({})
        shards[-1][key] = shape
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    task = progress.add_task(folder.name, total=total)
    rng = np.random.default_rng(seed)
    names = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        if len(shards) == 1:
            name = "model.safetensors"
        names.update(dict.fromkeys(shard, name))
        with (folder / name).open("wb") as file:
            _write_header(file, shard)
            for key, shape in shard.items():
                for chunk in (values or _values)(key, math.prod(shape), rng):
                    file.write(chunk.tobytes())
                    progress.advance(task, chunk.nbytes)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": names}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _write_header(file: BinaryIO, shapes: Shapes) -> None:
    header, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    file.write(len(text).to_bytes(8, "little") + text)


def _values(key: str, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Norms start at one and biases at zero, as models are initialised; the rest is normal."""
    for begin in range(0, size, CHUNK):
        count = min(CHUNK, size - begin)
        if "norm" in key:
            yield np.full(count, 1.0 if key.endswith("weight") else 0.0, dtype=np.float16)
        else:
            yield (rng.standard_normal(count, dtype=np.float32) * SPREAD).astype(np.float16)


def write_text_files(spec: ModelSpec, llava: Path, clip: Path) -> None:
    """Configurations, tokenizers and preprocessors."""
    (llava / "config.json").write_text(json.dumps(llava_config(spec), indent=2))
    (clip / "config.json").write_text(json.dumps(clip_config(spec), indent=2))
    side = spec.vision.image_size
    for name, folder in (("llava", llava), ("clip", clip)):
        source = demo_folder() / name
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(source / file, folder / file)
        fields = json.loads((source / "preprocessor_config.json").read_text())
        fields |= {
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(fields, indent=2))
    assert spec.image_token_id is not None
    _move(clip / "tokenizer.json", "<|endoftext|>", spec.text.eos_token_id)
    _move(llava / "tokenizer.json", "<image>", spec.image_token_id)


def _move(path: Path, content: str, number: int) -> None:
    """Gives a token of a tokenizer.json another id."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"][content] = number
    for token in tokenizer["added_tokens"]:
        if token["content"] == content:
            token["id"] = number
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    """Writes a LLaVA folder with its CLIP folder inside."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=[*SHAPES, DEMO])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    columns = (TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns) as progress:
        folder = options.folder / options.shape
        write_checkpoint(spec_of(options.shape), folder, options.seed, progress)


if __name__ == "__main__":
    main()
