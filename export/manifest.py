"""recomp.json: everything that a program must know to run a bundle without this library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paddle_recomp import __version__
from paddle_recomp.bundle import FORMAT, MANIFEST, PADDLE_PRECISIONS, write_checksums
from paddle_recomp.bundle.contract import Graph, Signature, signatures
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.compression.registry import get_method
from paddle_recomp.files import is_file
from paddle_recomp.preprocess import QuestionSource
from paddle_recomp.vlm.checkpoint_inputs import (
    image_processor,
    language_side,
    question_begin,
    question_tokenizer,
)
from paddle_recomp.vlm.fingerprints import projector_checksum

from .accuracy import TOWERS
from .calibration import Quantisation, Samples
from .convert import OPSET, PADDLE_FILES
from .paddle_int8 import PADDLE
from .plan import ExportPlan
from .shapes import dtype_of, shapes_of
from .versions import version_of

CLIP_TOKENIZER, LANGUAGE_TOKENIZER = "clip/tokenizer.json", "llm/tokenizer.json"


def describe(checkpoint: Checkpoint, name: str, plan: ExportPlan) -> dict[str, Any]:
    """The fields of recomp.json that do not depend on the files."""
    facts = facts_of(checkpoint, plan.config.towers.question_source)
    return {
        "format": FORMAT,
        # A reader that ignored them would give the model or CLIP another text.
        "requires": [
            *(["before_words"] if "before_words" in facts["prompt"]["template"] else []),
            *(["question_begin"] if "begin" in facts["question"] else []),
        ],
        "made_by": {
            "paddle_recomp": __version__,
            "paddlepaddle": version_of("paddle"),
            **{name: version_of(name) for name in ("paddle2onnx", "onnx")},
            "opset": OPSET,
        },
        "precision": plan.precision,
        "operators": plan.operators,
        **facts,
        # `question.source` is the home of the other switch.
        "towers": {k: v for k, v in asdict(plan.config.towers).items() if k != "question_source"},
        "graphs": {
            graph: _graph(graph, plan.signatures[graph], checkpoint)
            for graph in _graphs(plan.fused)
        },
        "compress": {
            "default": plan.config.method,
            "graphs": {name: _compressor(checkpoint, plan, name) for name in plan.compressors},
        },
        "language_model": {"name": name, "projector_sha256": projector_checksum(checkpoint)},
    }


def facts_of(checkpoint: Checkpoint, question_source: QuestionSource) -> dict[str, Any]:
    """The sections of recomp.json that say how a checkpoint wants its inputs prepared."""
    spec = checkpoint.spec
    return {
        "image": _image(checkpoint),
        "question": _question(checkpoint, question_source),
        "prompt": _prompt(checkpoint),
        "sizes": {
            "vision_width": spec.vision.hidden_size,
            "joint_width": spec.vision.projection_dim,
            "language_width": spec.projector.out_features,
            "max_tokens": spec.vision.num_patches,
        },
    }


def _image(checkpoint: Checkpoint) -> dict[str, Any]:
    vision = checkpoint.spec.vision
    side = vision.image_size // vision.patch_size
    return {
        **image_processor(checkpoint).steps(),
        "patch_size": vision.patch_size,
        "grid": [side, side],
        "patches": vision.num_patches,
    }


def _question(checkpoint: Checkpoint, source: QuestionSource) -> dict[str, Any]:
    tokenizer = question_tokenizer(checkpoint)
    begin = question_begin(checkpoint, source)
    return {
        "tokenizer": CLIP_TOKENIZER,
        "positions": checkpoint.spec.text.max_positions,
        "start_id": tokenizer.start_id,
        "end_id": tokenizer.end_id,
        "source": source,
        **({"begin": begin} if begin else {}),
    }


def _prompt(checkpoint: Checkpoint) -> dict[str, Any]:
    tokenizer, template = language_side(checkpoint)
    return {
        "tokenizer": LANGUAGE_TOKENIZER,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_ids": list(tokenizer.eos_token_ids),
        "pad_token_id": tokenizer.pad_token_id,
        "image_token_id": tokenizer.image_token_id,
        "silent_ids": list(tokenizer.silent_ids),
        "template": {k: v for k, v in asdict(template).items() if v or k != "before_words"},
    }


def _compressor(checkpoint: Checkpoint, plan: ExportPlan, name: str) -> dict[str, Any]:
    method = get_method(name)
    signature = signatures(method.graph_inputs)["compress"]
    return {
        **_graph(stem_of(plan, name), signature, checkpoint),
        "method": name,
        "options": asdict(plan.compressors[name].options),
        "stages": [asdict(stage) for stage in method.stages],
    }


def stem_of(plan: ExportPlan, compressor: str) -> str:
    """The name of a compressor's files, without their endings."""
    return "compress" if compressor == plan.config.method else f"compress_{compressor}"


def _graph(stem: str, signature: Signature, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "file": f"{stem}.onnx",
        "data": None,
        "inputs": [_tensor(key, checkpoint) for key in signature.inputs],
        "outputs": [_tensor(key, checkpoint) for key in signature.outputs],
    }


def describe_quantisation(wanted: Quantisation, samples: Samples) -> dict[str, Any]:
    """How and on what the towers were quantised. No paths: they are another machine's."""
    return {
        "kind": wanted.kind,
        "activations": "uint8",
        "weights": "int8 per channel",
        "calibration": wanted.calibration if wanted.kind == "static" else None,
        "target_cosine": wanted.target_cosine,
        "target_overlap": wanted.target_overlap,
        **samples.description,
    }


def describe_paddle(plan: ExportPlan) -> dict[str, Any]:
    """The files of Paddle Inference. Inputs and outputs are those of the ONNX graphs, outputs in
    their order: Paddle names them by number, and has the inputs once more behind them."""
    program, params = PADDLE_FILES

    def files(graph: str) -> dict[str, str]:
        return {"program": f"paddle/{graph}{program}", "params": f"paddle/{graph}{params}"}

    return {
        "precisions": [name for name in PADDLE_PRECISIONS if name != "int8"],
        "graphs": {graph: files(graph) for graph in _graphs(plan.fused)},
        "compress": {name: files(stem_of(plan, name)) for name in plan.compressors},
    }


def describe_paddle_int8(cosine: Mapping[str, float], samples: Samples) -> dict[str, Any]:
    """The towers in INT8, and what they keep. Experimental."""
    return {
        "made_by": {"paddlepaddle": PADDLE},
        "cosine": {name: round(value, 6) for name, value in cosine.items()},
        **samples.description,
        "graphs": {
            graph: {
                "program": f"paddle/int8/{graph}.pdmodel",
                "params": f"paddle/int8/{graph}.pdiparams",
            }
            for graph in TOWERS
        },
    }


def metadata_of(manifest: dict[str, Any], graph: str) -> dict[str, str]:
    """What a graph's own file carries, for a reader that has nothing else."""
    keys = (
        "made_by",
        "precision",
        "operators",
        "quantisation",
        "towers",
        "image",
        "question",
        "compress",
        "sizes",
    )
    return {
        "recomp.format": str(manifest["format"]),
        "recomp.graph": graph,
        **{f"recomp.{key}": _dump(manifest[key]) for key in keys if key in manifest},
    }


def decoder_metadata(manifest: dict[str, Any]) -> dict[str, str]:
    """The same for the decoder, which also says whose it is."""
    keys = ("made_by", "decoder", "language_model")
    return {
        "recomp.format": str(manifest["format"]),
        "recomp.graph": "decoder",
        "recomp.precision": manifest["decoder"]["precision"],
        **{f"recomp.{key}": _dump(manifest[key]) for key in keys},
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes recomp.json and, over it and every other file of the folder, SHA256SUMS. A graph whose
    weights are in a file beside it is found by that file."""
    for about in (*manifest["graphs"].values(), *manifest["compress"]["graphs"].values()):
        data = f"{about['file']}.data"
        about["data"] = data if is_file(folder / data) else None
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8", newline="\n")
    write_checksums(folder)


def _graphs(fused: bool) -> tuple[Graph, ...]:
    """Besides those that compress."""
    return ("vision", "text", "encoder") if fused else ("vision", "text")


def _tensor(name: str, checkpoint: Checkpoint) -> dict[str, Any]:
    return {"name": name, "dtype": dtype_of(name), "shape": shapes_of(checkpoint.spec)[name]}


def _dump(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
