"""The one-shot graph, made of the other three: an output of one is the next one's input of the same
name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from paddle_recomp.bundle.contract import Graph, Signature
from paddle_recomp.checkpoint import ModelSpec

from .onnx_graph import OnnxGraph
from .optimise import check, set_shapes
from .parity import compare, run, sample_inputs
from .shapes import TRACED, shapes_of
from .writing import write_model


def fuse(
    folder: Path,
    spec: ModelSpec,
    signatures: Mapping[Graph, Signature],
    metadata: dict[str, str],
) -> None:
    """Writes encoder.onnx from the files of the other graphs, whose names `signatures` has.

    Raises: ExportError when its outputs differ from those of the three run one after the other."""
    whole_of = signatures["encoder"]
    used = [name for name in TRACED if name != "text" or "question_ids" in whole_of.inputs]
    parts = {
        name: OnnxGraph.read(onnx.load(folder / f"{name}.onnx"), signatures[name].outputs)
        for name in used
    }
    inputs = {item.name: item for part in parts.values() for item in part.inputs}
    last = parts[TRACED[-1]]
    whole = OnnxGraph(
        nodes=[node for part in parts.values() for node in part.nodes],
        constants={k: v for part in parts.values() for k, v in part.constants.items()},
        inputs=[inputs[name] for name in whole_of.inputs],
        outputs=last.outputs,
        opset=last.opset,
    )
    whole.remove_unused()
    set_shapes(whole, shapes_of(spec))
    model = whole.model(metadata)
    del parts, whole
    check(model)
    path = folder / "encoder.onnx"
    write_model(model, path)
    del model

    arrays = sample_inputs(whole_of.inputs, spec)
    found = run(path, whole_of.outputs, arrays)
    for name in used:
        wanted = {key: arrays[key] for key in signatures[name].inputs}
        arrays |= run(folder / f"{name}.onnx", signatures[name].outputs, wanted)
    compare("encoder", {name: arrays[name] for name in whole_of.outputs}, found)
