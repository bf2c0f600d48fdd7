"""The steps of an export. Each writes one thing into the bundle's folder, and its description into
the manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from paddle_recomp.bundle import open_bundle
from paddle_recomp.bundle.contract import FROM_THE_LANGUAGE_MODEL, Graph
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.vlm.checkpoint_inputs import image_processor, language_side, question_tokenizer

from .accuracy import Outcome, describe_outcome, quantise_towers, scales_of
from .calibration import Quantisation, Samples, load_samples, words_of
from .convert import Job, convert
from .decoder.write import describe_decoder, write_decoder
from .fuse import fuse
from .golden import least_cosine, record
from .manifest import (
    CLIP_TOKENIZER,
    LANGUAGE_TOKENIZER,
    decoder_metadata,
    describe_paddle,
    describe_paddle_int8,
    describe_quantisation,
    metadata_of,
    stem_of,
    write_manifest,
)
from .paddle_int8 import quantise_for_paddle
from .plan import ExportPlan
from .samples import calibration_questions
from .scales import SCALES, write_scales
from .shapes import TRACED


@dataclass
class Work:
    """An export under way: the plan, and the results of the steps so far."""

    plan: ExportPlan
    checkpoint: Checkpoint
    folder: Path
    """Takes the place of the bundle when all steps are done."""
    manifest: dict[str, Any]
    samples: Samples | None = None
    outcome: Outcome | None = None
    """Of INT8 towers."""

    @property
    def quantisation(self) -> Quantisation:
        """The way in which the towers become INT8."""
        return self.plan.quantisation or Quantisation()

    def job(self, graph: Graph, *, onnx: bool = True, compressor: str | None = None) -> Job:
        """The conversion of a graph, to Paddle Inference where the plan asks for it; `compressor`
        names one beside the default."""
        stem = graph if compressor is None else stem_of(self.plan, compressor)
        config = self.plan.compressors[compressor or self.plan.config.method]
        return Job(
            graph=graph,
            model_dir=str(self.checkpoint.model_dir),
            clip_dir=str(self.checkpoint.clip_dir),
            config=config.as_dict(),
            reads=self.plan.reads,
            operators=self.plan.operators,
            metadata=metadata_of(self.manifest, graph) if onnx else {},
            output=str(self.folder / f"{stem}.onnx") if onnx else None,
            paddle=str(self.folder / "paddle" / stem) if self.plan.paddle else None,
        )


class Step(NamedTuple):
    """A step of an export, with its name for the progress bar."""

    name: str
    run: Callable[[Work], None]


def steps_of(plan: ExportPlan) -> list[Step]:
    """The steps of a plan, in order: a file that is made from others comes after them."""
    int8, further = plan.precision == "int8", [one.method for one in plan.also]
    chosen = [
        (Step("samples", read_samples), plan.quantised),
        *((Step(graph, partial(convert_graph, graph)), True) for graph in TRACED),
        *((Step(f"compress {name}", partial(convert_also, name)), True) for name in further),
        (Step("int8", quantise), int8),
        (Step("encoder", fuse_encoder), plan.fused),
        (Step("paddle encoder", convert_paddle_encoder), plan.paddle and plan.fused),
        (Step("paddle int8", quantise_paddle), plan.paddle_int8 is not None),
        (Step("decoder", convert_decoder), plan.decoder_precision is not None),
        (Step("tokenizers", write_tokenizers), True),
        (Step("golden", record_golden), plan.golden),
        (Step("checksums", finish), True),
    ]
    return [step for step, wanted in chosen if wanted]


def read_samples(work: Work) -> None:
    """Pictures and questions to calibrate and to measure on."""
    tokenizer = question_tokenizer(work.checkpoint)
    positions = work.checkpoint.spec.text.max_positions
    processor = image_processor(work.checkpoint)
    work.samples = load_samples(work.quantisation, processor, tokenizer, positions)
    if {*FROM_THE_LANGUAGE_MODEL} & {*work.plan.signatures["compress"].inputs}:
        asked = calibration_questions(work.quantisation.questions)
        words = [words_of(work.checkpoint, [question]) for question in asked]
        work.samples = replace(work.samples, words=words)
    if work.plan.precision == "int8":
        work.manifest["quantisation"] = describe_quantisation(work.quantisation, work.samples)


def convert_graph(graph: Graph, work: Work) -> None:
    """GRAPH.onnx in float, and with --paddle the files of Paddle Inference."""
    if work.plan.paddle:
        (work.folder / "paddle").mkdir(exist_ok=True)
        work.manifest.setdefault("paddle", describe_paddle(work.plan))
    convert(work.job(graph))


def convert_also(compressor: str, work: Work) -> None:
    """compress_NAME.onnx, in each format."""
    convert(work.job("compress", compressor=compressor))


def quantise(work: Work) -> None:
    """Makes vision.onnx and text.onnx INT8, and writes their scales.json."""
    samples = _read(work)
    work.outcome = quantise_towers(work.folder, work.quantisation, samples, work.plan.ranked)
    work.manifest["quantised"] = describe_outcome(work.outcome)
    scales = scales_of(work.outcome, work.quantisation)
    write_scales(work.folder / SCALES, scales, samples.description)
    work.manifest["scales"] = SCALES


def fuse_encoder(work: Work) -> None:
    """encoder.onnx, from the graphs of the bundle."""
    metadata = metadata_of(work.manifest, "encoder")
    fuse(work.folder, work.checkpoint.spec, work.plan.signatures, metadata)


def convert_paddle_encoder(work: Work) -> None:
    """The fused graph for Paddle Inference, which is traced as a whole."""
    convert(work.job("encoder", onnx=False))


def quantise_paddle(work: Work) -> None:
    """The towers of Paddle Inference in INT8."""
    samples, python = _read(work), work.plan.paddle_int8
    assert python is not None
    job, target = work.job("vision", onnx=False), work.quantisation.target_cosine
    outputs = {graph: one.outputs for graph, one in work.plan.signatures.items()}
    kept = quantise_for_paddle(work.folder, job, outputs, samples, python, target)
    work.manifest["paddle"]["precisions"].append("int8")
    work.manifest["paddle"]["int8"] = describe_paddle_int8(kept, samples)


def convert_decoder(work: Work) -> None:
    """The language model's decoder."""
    precision = work.plan.decoder_precision
    assert precision is not None
    work.manifest["decoder"] = describe_decoder(work.checkpoint, precision)
    write_decoder(work.checkpoint, work.folder, precision, decoder_metadata(work.manifest))


def write_tokenizers(work: Work) -> None:
    """Both tokenizers as tokenizer.json, also for a checkpoint that has other files."""
    clip = question_tokenizer(work.checkpoint)
    words = language_side(work.checkpoint)[0]
    for name, tokenizer in ((CLIP_TOKENIZER, clip), (LANGUAGE_TOKENIZER, words)):
        path = work.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(tokenizer.to_json(), encoding="utf-8", newline="\n")


def record_golden(work: Work) -> None:
    """The golden cases, recorded from the bundle as it stands."""
    write_manifest(work.folder, work.manifest)
    quantised = work.manifest.get("quantised")
    cosine = None if quantised is None else least_cosine(quantised["cosine"])
    work.manifest["golden"] = record(open_bundle(work.folder), cosine)


def finish(work: Work) -> None:
    """recomp.json and SHA256SUMS over all files."""
    write_manifest(work.folder, work.manifest)


def _read(work: Work) -> Samples:
    assert work.samples is not None, "a plan that quantises reads samples first"
    return work.samples
