"""A bundle from a checkpoint: convert each graph, fuse them, copy the small files, describe all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from export.convert import Job, convert
from export.errors import ExportError
from export.fuse import fuse
from export.manifest import describe, metadata_of, write_manifest
from export.shapes import TRACED
from export.writing import replaced_folder
from paddle_recomp.bundle import PRECISIONS, Bundle, open_bundle
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.config import CompressionConfig
from paddle_recomp.errors import ConfigError
from paddle_recomp.loading import DEMO, find_checkpoint
from paddle_recomp.methods import get_method
from paddle_recomp.preprocess import ClipTokenizer, LanguageTokenizer

STEPS = (*TRACED, "encoder", "files")
"""What `on_step` hears, in order."""

SMALL_FILES = {
    "clip": (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "preprocessor_config.json",
    ),
    "llm": (
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "generation_config.json",
        "chat_template.json",
        "preprocessor_config.json",
        "processor_config.json",
    ),
}
"""Copied as they are, where the checkpoint has them."""


def export(
    model: str | Path,
    output: Path,
    clip: str | Path | None = None,
    config: CompressionConfig | None = None,
    precision: str = "fp32",
    on_step: Callable[[str], None] = lambda step: None,
) -> Bundle:
    """Writes the bundle of a checkpoint, all of it or nothing, and opens it.

    Raises: ExportError, ConfigError, CheckpointError."""
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    config = config or CompressionConfig()
    get_method(config.method)
    checkpoint = find_checkpoint(model, clip)
    # Whatever the small files lack is found before the minutes of work, not after.
    ClipTokenizer.from_folder(checkpoint.clip_dir)
    LanguageTokenizer.from_folder(checkpoint.model_dir)
    name = DEMO if str(model) == DEMO else checkpoint.model_dir.resolve().name
    manifest = describe(checkpoint, name, config, precision)

    with replaced_folder(output) as folder:
        for graph in TRACED:
            on_step(graph)
            convert(
                Job(
                    graph=graph,
                    model_dir=str(checkpoint.model_dir),
                    clip_dir=str(checkpoint.clip_dir),
                    config=asdict(config),
                    metadata=metadata_of(manifest, graph),
                    output=str(folder / f"{graph}.onnx"),
                )
            )
        on_step("encoder")
        fuse(folder, checkpoint.spec, metadata_of(manifest, "encoder"))
        on_step("files")
        copy_small_files(checkpoint, folder)
        write_manifest(folder, manifest)
        open_bundle(folder)
    return open_bundle(output)


def copy_small_files(checkpoint: Checkpoint, folder: Path) -> None:
    """The tokenizers and the preparation of pictures. Raises: ExportError."""
    for part, source in (("clip", checkpoint.clip_dir), ("llm", checkpoint.model_dir)):
        (folder / part).mkdir()
        for name in SMALL_FILES[part]:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / part / name)
        if not any((folder / part).iterdir()):
            raise ExportError(f"{source} has no tokenizer to copy")
