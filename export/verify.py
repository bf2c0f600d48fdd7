"""Compares a bundle with its checkpoint: stage by stage, and token by token."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from paddle_recomp.backends.base import Backend, run_pipeline
from paddle_recomp.backends.eager import EagerBackend
from paddle_recomp.backends.onnx import OnnxBackend
from paddle_recomp.backends.sessions import available_providers
from paddle_recomp.bundle import Bundle, open_bundle
from paddle_recomp.bundle.comparison import Comparison, mean_cosine, relative_difference
from paddle_recomp.bundle.contract import FROM_THE_LANGUAGE_MODEL, TOKENS
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.config import TokenBudget
from paddle_recomp.errors import DeviceError, RecompWarning
from paddle_recomp.vlm.fingerprints import projector_checksum
from paddle_recomp.vlm.front_end import pad_words
from paddle_recomp.vlm.loading import (
    config_of,
    find_checkpoint,
    image_processor,
    language_side,
    question_tokenizer,
)

from .decoder.write import COSINES, DIFFERENCE, PROMPTS, compare_decoder
from .errors import VerificationError
from .facts import compare_facts
from .samples import load_pictures, load_questions
from .shapes import TRACED

BATCHES = (1, 3, 8)
_SCATTER = 0.2
"""More than three times the scatter of single pictures' overlap around its mean."""
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
    batch may be lower by _SCATTER / √batch."""


TOLERANCES = {
    "fp32": Tolerance(difference=1e-4, agreement=0.99),
    "int8": Tolerance(difference=1e-4, agreement=0.99, cosine=0.998, overlap=0.9),
    "bf16": Tolerance(difference=1e-4, agreement=0.99, cosine=0.9998, overlap=0.9),
}


def verify_bundle(
    folder: Path,
    model: str | Path,
    clip: str | Path | None = None,
    images: Path | None = None,
    template: str | None = None,
) -> list[Comparison]:
    """Runs both on the same pictures and questions, each image with another budget.

    Raises: BundleError, CheckpointError, VerificationError when the bundle belongs to another
    checkpoint; FeatureError for NaN or infinity."""
    bundle, checkpoint = open_bundle(folder), find_checkpoint(model, clip, template)
    bundle.verify()
    if projector_checksum(checkpoint) != bundle.language_model.projector_sha256:
        raise VerificationError(f"{folder} was not exported from {checkpoint.model_dir}")
    prepare = [image_processor(checkpoint), bundle.image_processor]
    tokenizers = [question_tokenizer(checkpoint), bundle.clip_tokenizer()]
    length = checkpoint.spec.text.max_positions
    given, rows = dict[int, Arrays](), list[Comparison]()
    for batch in BATCHES:
        pictures, questions = load_pictures(images, batch), load_questions(batch)
        pixels, other_pixels = (processor(pictures) for processor in prepare)
        ids, other_ids = (tokenizer.encode(questions, length)[0] for tokenizer in tokenizers)
        rows.append(_difference(batch, "inputs", "pixel_values", pixels, other_pixels, 0.0))
        rows.append(_agreement(batch, "inputs", "question_ids", ids, other_ids, 1.0))
        given[batch] = {
            "pixel_values": pixels,
            "question_ids": ids,
            "token_bounds": budgets(batch, bundle.num_patches),
            **_words(checkpoint, questions),
        }
    rows += compare_facts(bundle, checkpoint)
    for name in bundle.compressors:
        rows += _compare_graphs(bundle.choose(name), checkpoint, given.values())
    if bundle.decoder is not None:
        row = _compare_decoder(checkpoint, bundle.folder, bundle.decoder.precision)
        rows.append(replace(row, runtime=f"onnx {bundle.decoder.precision}"))
    return rows


def _words(checkpoint: Checkpoint, questions: Sequence[str]) -> Arrays:
    """word_embeds [B, W, D] and word_mask [B, W] of questions, for compressors that read them."""
    tokenizer, _ = language_side(checkpoint)
    table = checkpoint.parameter("language_model", "embed_tokens.weight")
    ids = [tokenizer.encode_words(question) for question in questions]
    embeds, mask = pad_words([table[one].astype(np.float32) for one in ids])
    return {"word_embeds": embeds, "word_mask": mask}


def _compare_graphs(
    bundle: Bundle, checkpoint: Checkpoint, batches: Iterable[Arrays]
) -> Iterator[Comparison]:
    """The graphs of a bundle with the compress graph that is chosen, in every runtime. One that is
    not the default has its name behind its stages."""
    eager, backends = EagerBackend(checkpoint, config_of(bundle)), list(runtimes(bundle))
    stage = "encoder" if "encoder" in bundle.graphs else "pipeline"
    default = bundle.compressor == next(iter(bundle.compressors))
    for inputs in batches:
        expected = run_pipeline(eager, inputs)
        for name, precision, backend in backends:
            for row in compare_with(expected, backend, precision, stage):
                place = row.stage if default else f"{row.stage} ({bundle.compressor})"
                yield replace(row, runtime=f"{name} {precision}", stage=place)


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
    expected: Arrays, other: Backend, precision: str, stage: str
) -> Iterator[Comparison]:
    """Compares each graph by itself on the reference's inputs, then all of them together on their
    own. `expected` is the reference's result of `run_pipeline`."""
    batch, limits = len(expected["pixel_values"]), TOLERANCES[precision]
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
        least = round(limits.overlap - _SCATTER / batch**0.5, 3)
        yield Comparison(batch, stage, "token_index", "overlap", overlap, least)
        yield Comparison(batch, stage, "visual_embeds", "cosine", cosine, limits.cosine)
        return
    yield from _compare_tokens(batch, stage, expected, whole, limits.agreement, limits.difference)


def budgets(batch: int, size: int) -> np.ndarray:
    """Bounds [B, 2], in turn: the filter's own number, a cap, an exact number, everything."""
    choices = [
        TokenBudget(),
        TokenBudget(max_tokens=max(size // 8, 1)),
        TokenBudget(tokens=max(size // 4, 1)),
        TokenBudget(full=True),
    ]
    bounds = [choices[i % len(choices)].bounds(size)[0] for i in range(batch)]
    return np.array(bounds, dtype=np.int64)


def compare_kept(expected: Arrays, found: Arrays) -> tuple[float, float]:
    """Mean overlap of the single patches that each image keeps, and mean cosine of the embeddings
    of patches that both keep; 0 where they share none."""
    overlaps, ours, theirs = [], [], []
    for image in range(len(expected["token_count"])):
        first, second = (_kept(array, image) for array in (expected, found))
        both = sorted(first.keys() & second.keys())
        overlaps.append(len(both) / max(len(first.keys() | second.keys()), 1))
        ours += [expected["visual_embeds"][image, first[patch]] for patch in both]
        theirs += [found["visual_embeds"][image, second[patch]] for patch in both]
    cosine = mean_cosine(np.stack(ours), np.stack(theirs)) if ours else 0.0
    return float(np.mean(overlaps)), cosine


def _kept(arrays: Arrays, image: int) -> dict[int, int]:
    """Patch -> row, of the tokens that are one patch."""
    rows = np.flatnonzero(arrays["token_index"][image] >= 0)
    return {int(arrays["token_index"][image, row]): int(row) for row in rows}


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
