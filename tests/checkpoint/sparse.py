"""Large checkpoints that are all zeros and take no room on the disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from paddle_recomp.checkpoint import names
from paddle_recomp.checkpoint.spec import LanguageModelSpec, ProjectorSpec
from tests.checkpoint.conftest import ORIGINAL_CONFIG
from tests.checkpoint.writers import SAFETENSORS_CODES, write_json


def write_sparse_shard(path: Path, shapes: names.Shapes, dtype: str) -> int:
    """A shard full of zeros that takes no room on the disk; its size in bytes."""
    header: dict[str, Any] = {}
    end = 0
    for key, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * (4 if dtype == "float32" else 2)
        header[key] = {
            "dtype": SAFETENSORS_CODES[dtype],
            "shape": shape,
            "data_offsets": [begin, end],
        }
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    return end


def write_sparse_model(folder: Path, layers: int = 12) -> list[int]:
    """A checkpoint of more than 300 MB in several shards, one of them bfloat16, that takes no room
    on the disk; the bytes of each shard."""
    language = LanguageModelSpec(
        160, 512, 4096, layers, 4, 4, 128, 256, 1e-6, 1e4, None, False, False, False, False, (2,)
    )
    config = {
        **ORIGINAL_CONFIG,
        "hidden_size": 512,
        "intermediate_size": 4096,
        "num_hidden_layers": layers,
    }
    write_json(folder / "config.json", config)
    shapes = {
        key if key.startswith("lm_head") else f"model.{key}": shape
        for key, shape in names.language_model(language).items()
    }
    for key, shape in names.projector(ProjectorSpec("mlp2x_gelu", 64, 512, True, "gelu")).items():
        number = {"linear_1": 0, "linear_2": 2}[key.split(".")[0]]
        shapes[f"model.mm_projector.{number}.{key.split('.')[1]}"] = shape
    weight_map: dict[str, str] = {}
    sizes: list[int] = []
    for number in range(layers // 4):
        mine = {
            key: shape
            for key, shape in shapes.items()
            if any(f".layers.{4 * number + layer}." in key for layer in range(4))
            or (number == 0 and ".layers." not in key)
        }
        name = f"model-{number}.safetensors"
        dtype = "bfloat16" if number == 1 else "float32"
        sizes.append(write_sparse_shard(folder / name, mine, dtype))
        weight_map |= dict.fromkeys(mine, name)
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    return sizes
