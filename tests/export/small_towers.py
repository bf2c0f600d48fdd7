"""Traces small towers as an export does and runs them in Paddle Inference, in a process of its own:
prints, as JSON, by output the difference of bfloat16 from float32, relative to the largest value.

    python -m tests.export.small_towers LAYERS ACTIVATION ATTENTION FOLDER
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import paddle

from export.convert import save_layer
from export.float32 import keep_float32
from export.graphs import LAYERS
from export.parity import sample_inputs
from paddle_recomp.backends.paddle_inference import Predictor
from paddle_recomp.bundle.contract import Graph
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.vlm.loading import find_checkpoint

Activation = Literal["quick_gelu", "gelu"]
GRAPHS: tuple[Graph, ...] = ("vision", "text")


def main(layers: int, activation: Activation, attention: str, folder: Path) -> dict[str, float]:
    """The differences."""
    spec = find_checkpoint("demo").spec
    spec = replace(
        spec,
        vision=replace(spec.vision, num_layers=layers, hidden_act=activation),
        text=replace(spec.text, num_layers=layers, hidden_act=activation),
    )
    config = CompressionConfig(attention=attention)
    found: dict[str, float] = {}
    for graph in GRAPHS:
        paddle.seed(0)
        layer = LAYERS[graph][0](spec, config)
        layer.eval()
        names, inputs = layer.signature.outputs, sample_inputs(layer.signature.inputs, spec)
        stem = folder / graph
        save_layer(layer, spec, stem)
        program, params = Path(f"{stem}.json"), Path(f"{stem}.pdiparams")
        before = Predictor(program, params).run(inputs, names)
        program.write_text(keep_float32(program.read_text(encoding="utf-8")), encoding="utf-8")
        fp32, bf16 = (
            Predictor(program, params, bf16=one).run(inputs, names) for one in (False, True)
        )
        for name, value in fp32.items():
            np.testing.assert_allclose(value, before[name], atol=1e-6 * np.abs(value).max())
            found[name] = float(np.abs(value - bf16[name]).max() / np.abs(value).max())
    return found


if __name__ == "__main__":
    layers, activation, attention, folder = sys.argv[1:]
    found = main(int(layers), cast(Activation, activation), attention, Path(folder))
    print(json.dumps(found))
