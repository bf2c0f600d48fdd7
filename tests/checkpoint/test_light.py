"""What reading costs: no heavy imports, and about one tensor of memory at a time."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from paddle_recomp.checkpoint import names
from paddle_recomp.checkpoint.spec import LanguageModelSpec, ProjectorSpec
from tests.checkpoint.conftest import ORIGINAL_CONFIG
from tests.checkpoint.writers import SAFETENSORS_CODES, write_json


def run(program: str, *arguments: object) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_imports_nothing_heavy() -> None:
    program = """
import sys
import paddle_recomp.checkpoint
print([name for name in ("paddle", "torch", "transformers", "safetensors") if name in sys.modules])
"""
    assert run(program).strip() == "[]"


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


def test_one_tensor_in_memory_at_a_time(tmp_path: Path, clip: Path) -> None:
    layers = 12
    language = LanguageModelSpec(
        160, 512, 4096, layers, 4, 4, 128, 256, 1e-6, 1e4, None, False, False, False, 1, (2,)
    )
    config = {
        **ORIGINAL_CONFIG,
        "hidden_size": 512,
        "intermediate_size": 4096,
        "num_hidden_layers": layers,
    }
    write_json(tmp_path / "config.json", config)
    shapes = {
        key if key.startswith("lm_head") else f"model.{key}": shape
        for key, shape in names.language_model(language).items()
    }
    for key, shape in names.projector(ProjectorSpec("mlp2x_gelu", 64, 512, True, "gelu")).items():
        number = {"linear_1": 0, "linear_2": 2}[key.split(".")[0]]
        shapes[f"model.mm_projector.{number}.{key.split('.')[1]}"] = shape
    weight_map: dict[str, str] = {}
    sizes: list[int] = []
    for number in range(layers // 2):
        mine = {
            key: shape
            for key, shape in shapes.items()
            if any(f".layers.{layer}." in key for layer in (2 * number, 2 * number + 1))
            or (number == 0 and ".layers." not in key)
        }
        name = f"model-{number}.safetensors"
        dtype = "bfloat16" if number == 1 else "float32"
        sizes.append(write_sparse_shard(tmp_path / name, mine, dtype))
        weight_map |= dict.fromkeys(mine, name)
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": weight_map})

    program = """
import resource, sys
from pathlib import Path
from paddle_recomp.checkpoint import open_checkpoint

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
checkpoint = open_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
opened = peak()
total = 0
for name, array in checkpoint.parameters("language_model"):
    array.sum()
    total += array.nbytes
print(opened - before, peak() - before, total)
"""
    opened, growth, total = map(int, run(program, tmp_path, clip).split())
    assert total > 300e6
    assert opened < 16e6
    assert growth < max(sizes)
