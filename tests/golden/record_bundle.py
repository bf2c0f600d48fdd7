"""The small bundle of format 2 in `bundle_format_2`, which later versions have to open and to run.

    python -m tests.golden.record_bundle

A model of random numbers with the demo's tokenizers. It was written once, and is not written again
with each change of the exporter: it stands for the bundles that people have."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.progress import Progress

from benchmarks.random_checkpoint import write_checkpoint
from export.build import export_bundle
from paddle_recomp.checkpoint.spec import (
    LanguageModelSpec,
    ModelSpec,
    ProjectorSpec,
    TextTowerSpec,
    VisionTowerSpec,
)

FOLDER = Path(__file__).parent / "bundle_format_2"
SPEC = ModelSpec(
    VisionTowerSpec(42, 7, 16, 32, 3, 2, "quick_gelu", 1e-5, 8),
    TextTowerSpec(720, 24, 16, 32, 1, 2, "quick_gelu", 1e-5, 8, 719),
    ProjectorSpec("mlp2x_gelu", 16, 16, True, "gelu"),
    LanguageModelSpec(
        vocab_size=704,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        max_positions=256,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        tie_word_embeddings=False,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        eos_token_ids=(2,),
    ),
    655,
    -2,
    "default",
    "llava_hf",
)


def values(key: str, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Large enough that a step shows in the next one; and no two norms are the same."""
    numbers = rng.standard_normal(size, dtype=np.float32)
    is_norm = "norm" in key and key.endswith("weight")
    yield (1 + 0.1 * numbers if is_norm else 0.3 * numbers).astype(np.float16)


def main() -> None:
    """Writes the bundle."""
    with tempfile.TemporaryDirectory() as name, Progress(disable=True) as progress:
        checkpoint = Path(name) / "tiny"
        write_checkpoint(SPEC, checkpoint, 0, progress, values=values)
        bundle = export_bundle(checkpoint, FOLDER, golden=True)
    content = json.loads((bundle.folder / "golden" / "cases.json").read_text(encoding="utf-8"))
    print(*(case["answer"]["text"] for case in content["cases"]), sep="\n")


if __name__ == "__main__":
    main()
