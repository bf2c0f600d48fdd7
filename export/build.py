"""A bundle from a checkpoint: convert each graph, fuse them, copy the small files, describe all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from export.accuracy import Outcome, describe_outcome, quantise_towers, scales_of
from export.calibration import Quantisation, load_samples
from export.convert import Job, convert
from export.decoder.write import describe_decoder, write_decoder
from export.errors import ExportError
from export.fuse import fuse
from export.manifest import (
    decoder_metadata,
    describe,
    describe_paddle,
    describe_paddle_int8,
    describe_quantisation,
    metadata_of,
    write_manifest,
)
from export.optimise import OPERATORS
from export.paddle_int8 import check_interpreter, quantise_for_paddle
from export.scales import SCALES, write_scales
from export.shapes import TRACED
from export.writing import replaced_folder
from paddle_recomp.bundle import DECODER_PRECISIONS, PRECISIONS, Bundle, open_bundle
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.compression.registry import get_method
from paddle_recomp.errors import ConfigError
from paddle_recomp.preprocess import ClipTokenizer, LanguageTokenizer
from paddle_recomp.vlm.loading import DEMO, DEMO_CHECKPOINT, find_checkpoint, image_processor

STEPS = {
    "fp32": (*TRACED, "encoder", "decoder", "files"),
    "int8": ("samples", *TRACED, "int8", "encoder", "decoder", "files"),
}
"""What `on_step` hears, in order, by precision."""
PADDLE_STEPS = ("paddle", "paddle int8")
"""What it hears after `encoder`, where Paddle Inference is asked for, and its INT8."""

NO_DECODER = "none"

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
    *,
    config: CompressionConfig | None = None,
    precision: str = "fp32",
    operators: str = "onnxruntime",
    quantisation: Quantisation | None = None,
    decoder: str | None = None,
    on_step: Callable[[str], None] = lambda step: None,
    on_outcome: Callable[[Outcome], None] | None = None,
    paddle: bool = False,
    paddle_int8: Path | None = None,
) -> Bundle:
    """Writes the bundle of a checkpoint, all of it or nothing, and opens it.

    `operators` is one of OPERATORS; `quantisation` is for precision int8; `decoder` is the
    precision of the language model, by default that of the bundle, and `none` leaves it out.
    `paddle` adds the graphs for Paddle Inference, in float; `paddle_int8` its towers in INT8, made
    by this interpreter of another environment (see `export.paddle_int8`).
    `on_outcome` hears what INT8 cost, which is then measured for each layer.

    Raises: ExportError, ConfigError, CheckpointError; ImageError for what is calibrated on."""
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    if operators not in OPERATORS:
        raise ConfigError(f"unknown operators {operators!r}; known: {', '.join(OPERATORS)}")
    decoder = decoder or precision
    if decoder not in (*DECODER_PRECISIONS, NO_DECODER):
        raise ConfigError(
            f"unknown precision {decoder!r} of the decoder; known: "
            f"{', '.join((*DECODER_PRECISIONS, NO_DECODER))}"
        )
    if quantisation is not None and precision != "int8" and paddle_int8 is None:
        raise ConfigError(f"precision {precision!r} is not quantised; choose int8")
    if paddle_int8 is not None:
        if not paddle:
            raise ConfigError("INT8 for Paddle Inference joins its float graphs: add --paddle")
        check_interpreter(paddle_int8)
    config = config or CompressionConfig()
    get_method(config.method)
    checkpoint = find_checkpoint(model, clip)
    # Whatever the small files lack is found before the minutes of work, not after.
    tokenizer = ClipTokenizer.from_folder(checkpoint.clip_dir)
    LanguageTokenizer.from_folder(checkpoint.model_dir)
    embedded = str(model) in (DEMO, DEMO_CHECKPOINT)
    name = DEMO if embedded else checkpoint.model_dir.resolve().name
    manifest = describe(checkpoint, name, config, precision, operators)
    if decoder != NO_DECODER:
        manifest["decoder"] = describe_decoder(checkpoint, decoder)
    if precision == "int8":
        on_step("samples")
    if precision == "int8" or paddle_int8 is not None:
        wanted, positions = quantisation or Quantisation(), checkpoint.spec.text.max_positions
        samples = load_samples(wanted, image_processor(checkpoint), tokenizer, positions)
    if precision == "int8":
        manifest["quantisation"] = describe_quantisation(wanted, samples)

    with replaced_folder(output) as folder:
        fused = Job(
            graph="encoder",
            model_dir=str(checkpoint.model_dir),
            clip_dir=str(checkpoint.clip_dir),
            config=config.as_dict(),
            operators=operators,
            metadata={},
            output=None,
            paddle=str(folder / "paddle" / "encoder"),
        )
        if paddle:
            manifest["paddle"] = describe_paddle()
            (folder / "paddle").mkdir()
        for graph in TRACED:
            on_step(graph)
            convert(
                replace(
                    fused,
                    graph=graph,
                    metadata=metadata_of(manifest, graph),
                    output=str(folder / f"{graph}.onnx"),
                    paddle=str(folder / "paddle" / graph) if paddle else None,
                )
            )
        if precision == "int8":
            on_step("int8")
            outcome = quantise_towers(folder, wanted, samples, on_outcome is not None)
            manifest["quantised"] = describe_outcome(outcome)
            write_scales(folder / SCALES, scales_of(outcome, wanted), samples.description)
        on_step("encoder")
        fuse(folder, checkpoint.spec, metadata_of(manifest, "encoder"))
        if paddle:
            on_step(PADDLE_STEPS[0])
            convert(fused)
        if paddle_int8 is not None:
            on_step(PADDLE_STEPS[1])
            kept = quantise_for_paddle(folder, fused, samples, paddle_int8, wanted.target_cosine)
            manifest["paddle"]["precisions"].append("int8")
            manifest["paddle"]["int8"] = describe_paddle_int8(kept, samples)
        if decoder != NO_DECODER:
            on_step("decoder")
            write_decoder(checkpoint, folder, decoder, decoder_metadata(manifest))
        on_step("files")
        copy_small_files(checkpoint, folder)
        write_manifest(folder, manifest)
        open_bundle(folder)
    if on_outcome is not None and precision == "int8":
        on_outcome(outcome)
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
