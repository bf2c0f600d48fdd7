"""Pictures and questions that an INT8 export is calibrated and measured on, and the ranges of
activations that follow from them."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from paddle_recomp.bundle.contract import Graph
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.errors import ConfigError, FeatureError
from paddle_recomp.preprocess import ClipTokenizer, ImageProcessor
from paddle_recomp.vlm.checkpoint_inputs import language_side
from paddle_recomp.vlm.front_end import pad_words

from .errors import ExportError
from .samples import calibration_pictures, calibration_questions
from .scales import Range, Scales

KINDS = ("dynamic", "static")
RANGE_METHODS = ("minmax", "entropy", "percentile")
TARGET_COSINE = 0.999
TARGET_OVERLAP = 0.85

_PERCENTILE = 99.999
_BINS = {"entropy": (512, 256), "percentile": (2048, 256)}
"""The bins of a histogram, and the number of levels into which `entropy` merges them: those of
U8."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Quantisation:
    """The way in which the towers become INT8."""

    kind: str = "dynamic"
    """`dynamic` measures the range of each activation while it runs, `static` before."""
    calibration: str = "minmax"
    """How a static range is chosen: `minmax`, `entropy` or `percentile`."""
    pictures: Path | None = None
    """A folder; None: the shipped pictures and, where it is installed, those of scikit-image."""
    questions: Path | None = None
    """A file with one question a line; None: those of the shipped pictures."""
    target_cosine: float = TARGET_COSINE
    """Mean cosine to fp32 that every output keeps on these pictures and questions."""
    target_overlap: float = TARGET_OVERLAP
    """Mean overlap of the patches kept with those that fp32 keeps of these pictures."""
    scales: Scales | None = None
    """The scales of an earlier export, which are used unchanged."""

    def __post_init__(self) -> None:
        """Raises: ConfigError."""
        for name, value, known in (
            ("quantisation", self.kind, KINDS),
            ("calibration", self.calibration, RANGE_METHODS),
        ):
            if value not in known:
                raise ConfigError(f"unknown {name} {value!r}; known: {', '.join(known)}")
        if self.kind == "dynamic" and self.calibration != "minmax":
            raise ConfigError(f"calibration {self.calibration!r} needs static quantisation")
        if self.scales is not None and (
            (self.kind, self.calibration) != (self.scales.kind, self.scales.calibration)
        ):
            raise ConfigError(
                f"the scales are {self.scales.kind}, {self.scales.calibration}; asked for is "
                f"{self.kind}, {self.calibration}"
            )
        if not 0 < self.target_cosine <= 1:
            raise ConfigError(f"target cosine is {self.target_cosine}; expected above 0, up to 1")
        if not 0 <= self.target_overlap <= 1:
            raise ConfigError(f"target overlap is {self.target_overlap}; expected 0 to 1")


@dataclass(frozen=True)
class Samples:
    """The inputs on which the towers are measured, one picture or question at a time, with their
    checksums."""

    feeds: Mapping[Graph, Sequence[Arrays]]
    """Feeds of the graphs: pixel_values [1, 3, S, S] for vision, question_ids [1, L] for text."""
    description: Mapping[str, Any]
    """Counts and checksums, for recomp.json."""
    words: Sequence[Arrays] = ()
    """word_embeds [1, W, D] and word_mask [1, W] of each question, where the compressor reads
    them."""


def load_samples(
    wanted: Quantisation, processor: ImageProcessor, tokenizer: ClipTokenizer, positions: int
) -> Samples:
    """Reads pictures and questions.

    Raises: ImageNotFoundError, ImageError, ConfigError when there are no questions."""
    pictures = calibration_pictures(wanted.pictures)
    questions = calibration_questions(wanted.questions)
    seen, asked = hashlib.sha256(), hashlib.sha256("\n".join(questions).encode())
    for picture in pictures:
        seen.update(f"{picture.size}".encode() + picture.convert("RGB").tobytes())
    ids, _ = tokenizer.encode(questions, positions)
    return Samples(
        feeds={
            "vision": [{"pixel_values": processor([picture])} for picture in pictures],
            "text": [{"question_ids": row[None]} for row in ids],
        },
        description={
            "pictures": {"count": len(pictures), "sha256": seen.hexdigest()},
            "questions": {"count": len(questions), "sha256": asked.hexdigest()},
        },
    )


def words_of(checkpoint: Checkpoint, questions: Sequence[str]) -> Arrays:
    """word_embeds [B, W, D] and word_mask [B, W] of questions, for compressors that read them."""
    tokenizer, _ = language_side(checkpoint)
    table = checkpoint.parameter("language_model", "embed_tokens.weight")
    ids = [tokenizer.encode_words(question) for question in questions]
    embeds, mask = pad_words([table[one].astype(np.float32) for one in ids])
    return {"word_embeds": embeds, "word_mask": mask}


def outputs_of(model: onnx.ModelProto, graph: Graph, feeds: Iterable[Arrays]) -> list[Arrays]:
    """The outputs of a tower in memory, feed by feed.

    Raises: ExportError when it does not run on them, for instance because the tokenizer has another
    vocabulary."""
    names = [info.name for info in model.graph.output]
    try:
        session = _session(model)
        return [dict(zip(names, session.run(names, feed), strict=True)) for feed in feeds]
    except Exception as error:  # The runtime has an exception class for each status.
        reason = " ".join(str(error).split())
        raise ExportError(f"the graph {graph!r} does not run on the samples: {reason}") from error


def ranges_of(
    model: onnx.ModelProto, values: Sequence[str], feeds: Iterable[Arrays], calibration: str
) -> dict[str, Range]:
    """The range of each value that a scale has to cover: its lowest and highest number. It includes
    zero.

    Raises: FeatureError when a value is not finite; ExportError when no range is found."""
    spied = onnx.ModelProto()
    spied.CopyFrom(model)
    known = {info.name for info in spied.graph.output}
    spied.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in values if name not in known
    )
    session, limits = _session(spied), dict.fromkeys(values, (0.0, 0.0))
    collector = None if calibration == "minmax" else _collector(calibration)
    for feed in feeds:
        # One feed at a time, because the activations of a large tower for all pictures are too
        # large for memory.
        found = dict(zip(values, session.run(list(values), feed), strict=True))
        for name, array in found.items():
            low, high = float(array.min()), float(array.max())
            if not np.isfinite([low, high]).all():
                raise FeatureError(f"{name} holds NaN or infinity; the weights are broken")
            limits[name] = (min(low, limits[name][0]), max(high, limits[name][1]))
        if collector is not None:
            with contextlib.redirect_stdout(io.StringIO()):
                collector.collect(found)
    if collector is None:
        return limits
    with contextlib.redirect_stdout(io.StringIO()):
        chosen = collector.compute_collection_result()
    narrowed = {}
    for name, (low, high) in limits.items():
        narrowed[name] = (
            min(max(float(chosen[name][0]), low), 0.0),
            max(min(float(chosen[name][1]), high), 0.0),
        )
        if not np.isfinite(narrowed[name]).all():
            raise ExportError(f"calibration {calibration!r} finds no range for {name}")
    return narrowed


def _collector(calibration: str) -> Any:
    """The runtime's own histograms, which grow with each feed and keep no activations."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    bins, merged = _BINS[calibration]
    return HistogramCollector(
        method=calibration,
        symmetric=False,
        num_bins=bins,
        num_quantized_bins=merged,
        percentile=_PERCENTILE,
        scenario="same",
    )


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
