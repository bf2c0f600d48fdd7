"""Compares a bundle with its checkpoint: stage by stage, and token by token."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from paddle_recomp.backends.base import Backend, run_pipeline
from paddle_recomp.backends.eager import EagerBackend
from paddle_recomp.backends.onnx import OnnxBackend
from paddle_recomp.backends.sessions import available_providers
from paddle_recomp.bundle import Bundle, open_bundle
from paddle_recomp.bundle.comparison import Comparison, mean_cosine, relative_difference
from paddle_recomp.bundle.contract import FROM_THE_LANGUAGE_MODEL, TOKENS
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.errors import DeviceError, RecompWarning
from paddle_recomp.vlm.checkpoint_inputs import image_processor, question_tokenizer
from paddle_recomp.vlm.fingerprints import projector_checksum
from paddle_recomp.vlm.loading import config_of, find_checkpoint

from .calibration import words_of
from .choices import budgets, compare_kept
from .decoder.write import COSINES, DIFFERENCE, PROMPTS, compare_decoder
from .errors import VerificationError
from .facts import compare_facts
from .parity import sample_inputs
from .samples import load_pictures, load_questions
from .shapes import TRACED
from .stored import InFloat, compare_stored

BATCHES = (1, 3, 8)
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tolerance:
    """The limits of a precision."""

    difference: float
    """The difference of a float, relative to the largest value of its array."""
    agreement: float
    """Share of the choices that must be equal when they follow from the bundle's own features. From
    equal features all choices must be equal, in every precision."""
    cosine: float | None = None
    """Mean cosine of the vectors that INT8 and bfloat16 compute, in place of their difference."""
    overlap: float | None = None
    """Mean intersection over union of the tokens kept, in place of their agreement; the mean of a
    batch may be lower by `scatter` / √batch."""
    scatter: float = 0.2
    """More than three times the scatter of single pictures' overlap around its mean."""


_NOISE = 2e-5
"""Ten times what two libraries differed by in float32, with 6 layers and with 24."""
TOLERANCES = {
    "fp32": Tolerance(difference=_NOISE, agreement=0.99),
    "int8": Tolerance(difference=_NOISE, agreement=0.99, cosine=0.998, overlap=0.9),
    "bf16": Tolerance(difference=_NOISE, agreement=0.99, cosine=0.9998, overlap=0.9),
    # Its last two layers, which decide, are in float32.
    "paddle bf16": Tolerance(
        difference=_NOISE, agreement=0.99, cosine=0.9999, overlap=0.97, scatter=0.1
    ),
}
"""By precision, and by runtime and precision where that keeps more."""


@dataclass(frozen=True)
class Reference:
    """What a checkpoint gives on the inputs of a comparison."""

    checkpoint: Checkpoint
    pictures: tuple[list[Image.Image], ...]
    questions: tuple[list[str], ...]
    expected: Mapping[str, Sequence[Arrays]]
    """By compressor the inputs and outputs of all graphs: for each batch of pictures, and for
    noise, which comes last and reaches what no picture does."""
    noise: Mapping[str, Arrays]
    """The same of each compressor on features of noise."""


def verify_bundle(
    folder: Path,
    model: str | Path,
    clip: str | Path | None = None,
    images: Path | None = None,
    template: str | None = None,
) -> list[Comparison]:
    """Compares what a bundle stores, and runs both on the same pictures and questions, each image
    with another budget.

    Raises: BundleError, CheckpointError, VerificationError when the bundle belongs to another
    checkpoint; FeatureError for NaN or infinity."""
    bundle, checkpoint = open_bundle(folder), find_checkpoint(model, clip, template)
    bundle.verify()
    if projector_checksum(checkpoint) != bundle.language_model.projector_sha256:
        raise VerificationError(f"{folder} was not exported from {checkpoint.model_dir}")
    return list(compare_bundle(bundle, reference_of(bundle, checkpoint, images)))


def reference_of(bundle: Bundle, checkpoint: Checkpoint, images: Path | None = None) -> Reference:
    """Runs a checkpoint in eager Paddle, as the bundle's algorithms say.

    Raises: CheckpointError, ImageError, FeatureError."""
    pictures = tuple(load_pictures(images, batch) for batch in BATCHES)
    questions = tuple(load_questions(batch) for batch in BATCHES)
    prepare = image_processor(checkpoint)
    tokenizer, spec = question_tokenizer(checkpoint), checkpoint.spec
    given: list[Arrays] = [
        {
            "pixel_values": prepare(seen),
            "question_ids": tokenizer.encode(asked, spec.text.max_positions)[0],
            "token_bounds": budgets(len(seen), bundle.num_patches),
            **words_of(checkpoint, asked),
        }
        for seen, asked in zip(pictures, questions, strict=True)
    ]
    given.append(sample_inputs(list(given[0]), spec))
    expected, noise = dict[str, Sequence[Arrays]](), dict[str, Arrays]()
    for name in bundle.compressors:
        chosen = bundle.choose(name)
        eager = EagerBackend(checkpoint, config_of(chosen))
        expected[name] = [run_pipeline(eager, inputs) for inputs in given]
        drawn = sample_inputs(chosen.graphs["compress"].inputs, spec)
        noise[name] = drawn | eager.run("compress", drawn)
    return Reference(checkpoint, pictures, questions, expected, noise)


def compare_bundle(bundle: Bundle, reference: Reference) -> Iterator[Comparison]:
    """Everything of a bundle that its checkpoint decides, first what is copied.

    Raises: BundleError, CheckpointError, FeatureError."""
    yield from compare_facts(bundle, reference.checkpoint)
    yield from compare_stored(bundle, reference.checkpoint)
    yield from compare_computed(bundle, reference)


def compare_computed(bundle: Bundle, reference: Reference) -> Iterator[Comparison]:
    """What comes of the same pictures and questions.

    Raises: as `compare_bundle`."""
    yield from _compare_inputs(bundle, reference)
    for name in bundle.compressors:
        yield from _compare_graphs(bundle.choose(name), reference)
    if bundle.decoder is not None:
        row = _compare_decoder(reference.checkpoint, bundle.folder, bundle.decoder.precision)
        yield replace(row, runtime=f"onnx {bundle.decoder.precision}")


def _compare_inputs(bundle: Bundle, reference: Reference) -> Iterator[Comparison]:
    tokenizer, length = bundle.clip_tokenizer(), bundle.question_positions
    expected = reference.expected[bundle.compressor]
    for pictures, questions, wanted in zip(
        reference.pictures, reference.questions, expected, strict=False
    ):
        batch, ids = len(pictures), tokenizer.encode(questions, length)[0]
        pixels = bundle.image_processor(pictures)
        yield _difference(batch, "inputs", "pixel_values", wanted["pixel_values"], pixels, 0.0)
        yield _agreement(batch, "inputs", "question_ids", wanted["question_ids"], ids, 1.0)


def _compare_graphs(bundle: Bundle, reference: Reference) -> Iterator[Comparison]:
    """The graphs of a bundle with the compress graph that is chosen, in every runtime. One that is
    not the default has its name behind its stages."""
    checkpoint, name = reference.checkpoint, bundle.compressor
    backends = [(f"{kind} {bits}", bits, backend) for kind, bits, backend in runtimes(bundle)]
    if bundle.precision != "fp32":
        backends.append(("in float", "fp32", InFloat(bundle, checkpoint)))
    stage = "encoder" if "encoder" in bundle.graphs else "pipeline"
    default = name == next(iter(bundle.compressors))
    *seen, noise = reference.expected[name]
    for runtime, precision, backend in backends:
        limits = TOLERANCES.get(runtime, TOLERANCES[precision])
        # Noise is nothing that INT8 was calibrated for.
        batches = (*seen, noise) if limits.cosine is None else seen
        compared = [compare_with(one, backend, limits, stage) for one in batches]
        compared.append(_compare_drawn(backend, dict(reference.noise[name]), limits))
        for row in chain.from_iterable(compared):
            place = row.stage if default else f"{row.stage} ({name})"
            yield replace(row, runtime=runtime, stage=place)


def _compare_drawn(backend: Backend, drawn: Arrays, limits: Tolerance) -> Iterator[Comparison]:
    """The compressor on features of noise."""
    found = backend.run("compress", drawn)
    batch = len(drawn["token_bounds"])
    yield from _compare_tokens(batch, "compress", drawn, found, 1.0, limits.difference)


def runtimes(bundle: Bundle, threads: int | None = None) -> Iterator[tuple[str, str, Backend]]:
    """All runtimes and precisions in which this machine can run the bundle: name, precision,
    backend."""
    yield "onnx", bundle.precision, OnnxBackend(bundle, threads=threads)
    if bundle.operators == "onnx" and "openvino" in available_providers():
        # INT8 layers stay INT8; the rest of a tower may be bfloat16.
        rounded = "bf16" if bundle.precision == "fp32" else bundle.precision
        for name, hint, precision in (
            ("openvino", "fp32", bundle.precision),
            ("openvino bf16", "bf16", rounded),
        ):
            yield name, precision, OnnxBackend(bundle, ["openvino"], threads, hint)
    if bundle.paddle is None:
        return
    from paddle_recomp.backends.paddle_inference import PaddleInferenceBackend

    for precision in bundle.paddle.precisions:
        try:
            yield "paddle", precision, PaddleInferenceBackend(bundle, precision, threads=threads)
        except DeviceError as error:
            warnings.warn(f"not compared: {error}", RecompWarning, stacklevel=2)


def compare_with(
    expected: Arrays, other: Backend, limits: Tolerance, stage: str
) -> Iterator[Comparison]:
    """Compares each graph by itself on the reference's inputs, then all of them together on their
    own. `expected` is the reference's result of `run_pipeline`."""
    batch = len(expected["pixel_values"])
    for graph in TRACED:
        found = other.run(graph, expected)
        if graph == "compress":
            yield from _compare_tokens(batch, graph, expected, found, 1.0, limits.difference)
            continue
        for name, value in found.items():
            # A vision graph also has outputs for other compress graphs of the bundle.
            if name in expected:
                yield _compare_floats(batch, graph, name, expected[name], value, limits)

    given = ("pixel_values", "question_ids", "token_bounds", *FROM_THE_LANGUAGE_MODEL)
    whole = other.run("encoder", {name: expected[name] for name in given})
    if limits.cosine is not None and limits.overlap is not None:
        overlap, cosine = compare_kept(expected, whole)
        least = round(limits.overlap - limits.scatter / batch**0.5, 3)
        yield Comparison(batch, stage, "token_index", "overlap", overlap, least)
        yield Comparison(batch, stage, "visual_embeds", "cosine", cosine, limits.cosine)
        return
    yield from _compare_tokens(batch, stage, expected, whole, limits.agreement, limits.difference)


def _compare_floats(
    batch: int,
    stage: str,
    name: str,
    expected: np.ndarray,
    found: np.ndarray,
    limits: Tolerance,
) -> Comparison:
    if limits.cosine is None:
        return _difference(batch, stage, name, expected, found, limits.difference)
    value = mean_cosine(expected, found) if expected.shape == found.shape else 0.0
    return Comparison(batch, stage, name, "cosine", value, limits.cosine)


def _compare_tokens(
    batch: int, stage: str, expected: Arrays, found: Arrays, agreement: float, difference: float
) -> Iterator[Comparison]:
    for name in TOKENS:
        if name != "visual_embeds":
            yield _agreement(batch, stage, name, expected[name], found[name], agreement)
    # Embeddings can be compared only where the choices are equal.
    width = min(array["token_index"].shape[1] for array in (expected, found))
    same = expected["token_count"] == found["token_count"]
    for name in ("token_index", "token_stage", "token_centre"):
        same = same & (expected[name][:, :width] == found[name][:, :width]).all(axis=1)
    ours, theirs = (array["visual_embeds"][same, :width] for array in (expected, found))
    row = _difference(batch, stage, "visual_embeds", ours, theirs, difference)
    yield row if same.any() else replace(row, value=float("inf"))


def _compare_decoder(checkpoint: Checkpoint, folder: Path, precision: str) -> Comparison:
    difference, cosine = compare_decoder(checkpoint, folder, precision)
    if precision in COSINES:
        return Comparison(PROMPTS, "decoder", "logits", "cosine", cosine, COSINES[precision])
    return Comparison(PROMPTS, "decoder", "logits", "difference", difference, DIFFERENCE)


def _difference(
    batch: int, stage: str, name: str, expected: np.ndarray, found: np.ndarray, limit: float
) -> Comparison:
    value = relative_difference(expected, found) if expected.shape == found.shape else np.inf
    return Comparison(batch, stage, name, "difference", float(value), limit)


def _agreement(
    batch: int,
    stage: str,
    name: str,
    expected: np.ndarray,
    found: np.ndarray,
    limit: float,
) -> Comparison:
    """The share of equal numbers. Where one batch has more padding than the other, the surplus
    counts as different."""
    size = max(expected.size, found.size)
    if expected.ndim == 2:
        width = min(expected.shape[1], found.shape[1])
        expected, found = expected[:, :width], found[:, :width]
    equal = int((expected == found).sum()) if expected.shape == found.shape else 0
    return Comparison(batch, stage, name, "agreement", equal / max(size, 1), limit)
