"""The one-shot graph, made of the other three: what one gives by a name, the next takes by it."""

from __future__ import annotations

from pathlib import Path

import onnx

from paddle_recomp.bundle.contract import INPUTS, OUTPUTS
from paddle_recomp.checkpoint import ModelSpec

from .onnx_graph import OnnxGraph
from .optimise import check, set_shapes
from .parity import compare, run, sample_inputs
from .shapes import TRACED, shapes_of
from .writing import write_model


def fuse(folder: Path, spec: ModelSpec, metadata: dict[str, str]) -> None:
    """Writes encoder.onnx from the files of the other graphs.

    Raises: ExportError when it does not compute what they compute one after the other."""
    parts = {
        name: OnnxGraph.read(onnx.load(folder / f"{name}.onnx"), OUTPUTS[name]) for name in TRACED
    }
    inputs = {item.name: item for part in parts.values() for item in part.inputs}
    last = parts[TRACED[-1]]
    whole = OnnxGraph(
        nodes=[node for part in parts.values() for node in part.nodes],
        constants={k: v for part in parts.values() for k, v in part.constants.items()},
        inputs=[inputs[name] for name in INPUTS["encoder"]],
        outputs=last.outputs,
        opset=last.opset,
    )
    set_shapes(whole, shapes_of(spec))
    model = whole.model(metadata)
    del parts, whole
    check(model)
    path = folder / "encoder.onnx"
    write_model(model, path)
    del model

    arrays = sample_inputs(INPUTS["encoder"], spec)
    found = run(path, OUTPUTS["encoder"], arrays)
    for name in TRACED:
        wanted = {key: arrays[key] for key in INPUTS[name]}
        arrays |= run(folder / f"{name}.onnx", OUTPUTS[name], wanted)
    compare("encoder", {name: arrays[name] for name in OUTPUTS["encoder"]}, found)
