"""recomp.json: everything that a program must know to run a bundle without this library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from paddle_recomp import __version__
from paddle_recomp.bundle import FORMAT, MANIFEST, PADDLE_PRECISIONS, checksum, seal
from paddle_recomp.bundle.contract import INPUTS, OUTPUTS, Graph
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.preprocess import ClipTokenizer
from paddle_recomp.vlm.fingerprints import projector_checksum
from paddle_recomp.vlm.loading import image_processor

from .accuracy import TOWERS
from .calibration import Quantisation, Samples
from .convert import OPSET, PADDLE_FILES
from .paddle_int8 import PADDLE
from .plan import ExportPlan
from .shapes import TRACED, dtype_of, shapes_of


def describe(checkpoint: Checkpoint, name: str, plan: ExportPlan) -> dict[str, Any]:
    """The fields of recomp.json that do not depend on the files."""
    spec, processor = checkpoint.spec, image_processor(checkpoint)
    tokenizer = ClipTokenizer.from_folder(checkpoint.clip_dir)
    side = spec.vision.image_size // spec.vision.patch_size
    return {
        "format": FORMAT,
        "made_by": {
            "paddle_recomp": __version__,
            **{key: metadata.version(key) for key in ("paddlepaddle", "paddle2onnx", "onnx")},
            "opset": OPSET,
        },
        "precision": plan.precision,
        "operators": plan.operators,
        "compression": plan.config.as_dict(),
        "image": {
            **asdict(processor),
            "patch_size": spec.vision.patch_size,
            "grid": [side, side],
            "patches": spec.vision.num_patches,
        },
        "text": {
            "positions": spec.text.max_positions,
            "start_id": tokenizer.start_id,
            "end_id": tokenizer.end_id,
        },
        "sizes": {
            "vision_width": spec.vision.hidden_size,
            "joint_width": spec.vision.projection_dim,
            "language_width": spec.projector.out_features,
            "max_tokens": spec.vision.num_patches,
        },
        "prompt": {"template": spec.chat_template},
        "language_model": {"name": name, "projector_sha256": projector_checksum(checkpoint)},
        "graphs": {
            graph: {
                "file": f"{graph}.onnx",
                "inputs": [_tensor(key, checkpoint) for key in INPUTS[graph]],
                "outputs": [_tensor(key, checkpoint) for key in OUTPUTS[graph]],
            }
            for graph in _graphs(plan.fused)
        },
    }


def describe_quantisation(wanted: Quantisation, samples: Samples) -> dict[str, Any]:
    """How and on what the towers were quantised. No paths: they are another machine's."""
    return {
        "kind": wanted.kind,
        "activations": "uint8",
        "weights": "int8 per channel",
        "calibration": wanted.calibration if wanted.kind == "static" else None,
        "target_cosine": wanted.target_cosine,
        **samples.description,
    }


def describe_paddle(fused: bool) -> dict[str, Any]:
    """The files of Paddle Inference. Inputs and outputs are those of the ONNX graphs, outputs in
    their order: Paddle names them by number, and has the inputs once more behind them."""
    program, params = PADDLE_FILES
    return {
        "precisions": [name for name in PADDLE_PRECISIONS if name != "int8"],
        "graphs": {
            graph: {"program": f"paddle/{graph}{program}", "params": f"paddle/{graph}{params}"}
            for graph in _graphs(fused)
        },
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
        "compression",
        "image",
        "text",
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
    """Writes recomp.json with the size and checksum of every other file of the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": checksum(path),
        }
        for path in paths
    }
    sealed = {**manifest, "files": files}
    sealed["seal"] = seal(sealed)
    text = json.dumps(sealed, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _graphs(fused: bool) -> tuple[Graph, ...]:
    return (*TRACED, "encoder") if fused else TRACED


def _tensor(name: str, checkpoint: Checkpoint) -> dict[str, Any]:
    return {"name": name, "dtype": dtype_of(name), "shape": shapes_of(checkpoint.spec)[name]}


def _dump(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
