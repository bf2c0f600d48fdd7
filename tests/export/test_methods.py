"""Every method and preset as a graph, against the same code in eager Paddle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import paddle
import pytest

from export.build import export
from export.convert import OPSET, convert_layer
from export.graphs import build
from paddle_recomp.backends.base import OUTPUTS
from paddle_recomp.bundle import Bundle
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.config import PRESETS, TokenBudget, preset
from paddle_recomp.methods import METHODS
from paddle_recomp.types import VisionFeatures
from tests.compressor.conftest import random_vision

CASES = [(name, "recoverable") for name in PRESETS]
CASES += [("corrected", method) for method in METHODS if method != "recoverable"]
BUDGETS = [TokenBudget(), TokenBudget(max_tokens=9), TokenBudget(tokens=20), TokenBudget(full=True)]


def run_both(
    layer: Any, session: Any, vision: VisionFeatures, text: Any, budget: TokenBudget
) -> None:
    batch, size = vision.visual_score.shape
    bounds = paddle.to_tensor([budget.bounds(size)] * batch, dtype="int64")
    inputs = {**vision._asdict(), "text_embeds": text, "token_bounds": bounds}
    names = OUTPUTS["compress"]
    with paddle.no_grad():
        expected = dict(zip(names, (x.numpy() for x in layer(**inputs)), strict=False))
    arrays = {name: x.numpy() for name, x in inputs.items()}
    for name, found in zip(names, session.run(list(names), arrays), strict=True):
        if name == "visual_embeds":
            np.testing.assert_allclose(found, expected[name], atol=2e-6)
        else:
            np.testing.assert_array_equal(found, expected[name], err_msg=name)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_method_agrees_with_itself(
    name: str, method: str, golden_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    spec, config = golden_checkpoint.spec, preset(name, method=method)
    layer = build("compress", golden_checkpoint, config)
    model = convert_layer("compress", build("compress", golden_checkpoint, config), spec, tmp_path)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    size, width, joint = (
        spec.vision.num_patches,
        spec.vision.hidden_size,
        spec.vision.projection_dim,
    )
    for batch in (1, 3, 8):
        vision, text = random_vision(batch, batch, size, width, joint)
        flat = vision._replace(
            visual_score=paddle.full_like(vision.visual_score, 1 / size),
            patch_embeds=paddle.ones_like(vision.patch_embeds),
        )
        for budget in BUDGETS:
            run_both(layer, session, vision, text, budget)
            # Constant scores: nothing passes the filter, everything is a tie.
            run_both(layer, session, flat, text, budget)


def test_the_seed_of_random_is_in_the_graph(golden_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Not the default one, so that a constant that was forgotten would show."""
    config = preset("corrected", method="random", seed=7)
    layer = build("compress", golden_checkpoint, config)
    spec = golden_checkpoint.spec
    model = convert_layer("compress", build("compress", golden_checkpoint, config), spec, tmp_path)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    vision, text = random_vision(
        0, 2, spec.vision.num_patches, spec.vision.hidden_size, spec.vision.projection_dim
    )
    run_both(layer, session, vision, text, TokenBudget(tokens=12))


def test_another_preset_makes_another_bundle(demo_bundle: Bundle, tmp_path: Path) -> None:
    faithful = export("demo", tmp_path / "faithful", config=preset("faithful"))
    assert faithful.config == preset("faithful")
    assert OPSET >= 17
    for name in ("vision.onnx", "text.onnx", "compress.onnx", "encoder.onnx"):
        assert faithful.files[name].sha256 != demo_bundle.files[name].sha256
