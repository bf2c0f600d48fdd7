"""Every method and preset as a graph, against the same code in eager Paddle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import paddle
import pytest

from export.build import export_bundle
from export.convert import OPSET
from export.graphs import build
from paddle_recomp.bundle import Bundle
from paddle_recomp.bundle.contract import OUTPUTS
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.compression.config import PRESETS, CompressionConfig, preset
from paddle_recomp.compression.registry import METHODS
from paddle_recomp.config import TokenBudget
from paddle_recomp.types import VisionFeatures
from paddle_recomp.vlm.loading import config_of
from tests.compressor.conftest import random_vision
from tests.compressor.everything import EVERYTHING

from .exports import Exports

ROOT = Path(__file__).parents[2]
CASES: dict[str, CompressionConfig] = {
    **PRESETS,
    **{name: preset("corrected", method=name) for name in METHODS if name != "recoverable"},
    # Not the default seed: a constant that was forgotten would show.
    "seven": preset("corrected", method="random", seed=7),
    "switches": preset("corrected", attention="heads", text_sign=-1, members=5, text_weight=0.5),
}
BUDGETS = [TokenBudget(), TokenBudget(max_tokens=9), TokenBudget(tokens=20), TokenBudget(full=True)]

# In a process of its own, like every conversion: Paddle's tracer hangs where paddlenlp, which
# replaces some of Paddle's functions, was imported before it.
CONVERT = """
import sys
from pathlib import Path
from export.convert import convert_layer
from export.graphs import build
from paddle_recomp.vlm.loading import find_checkpoint
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.compression.registry import METHODS
from tests.compressor.everything import EVERYTHING
from tests.export.test_methods import CASES
METHODS[EVERYTHING.name] = EVERYTHING
checkpoint = find_checkpoint(sys.argv[1], sys.argv[2])
for name, config in {**CASES, EVERYTHING.name: CompressionConfig(EVERYTHING.name)}.items():
    layer = build("compress", checkpoint, config)
    model = convert_layer("compress", layer, checkpoint.spec, Path(sys.argv[3]))
    Path(sys.argv[3], f"{name}.onnx").write_bytes(model.SerializeToString())
"""


@pytest.fixture(scope="module")
def graphs(golden_checkpoint: Checkpoint, exports: Exports) -> Path:
    def convert(folder: Path) -> None:
        folder.mkdir()
        folders = [golden_checkpoint.model_dir, golden_checkpoint.clip_dir, folder]
        command = [sys.executable, "-c", CONVERT, *map(str, folders)]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)

    return exports.once("methods", convert)


def run_both(
    layer: Any,
    session: Any,
    vision: VisionFeatures,
    text: Any,
    budget: TokenBudget,
    **others: Any,
) -> None:
    batch, size = vision.visual_score.shape
    bounds = paddle.to_tensor(budget.bounds(size) * batch, dtype="int64")
    given = {**vision._asdict(), "text_embeds": text, "token_bounds": bounds, **others}
    inputs = {name: given[name] for name in layer.signature.inputs}
    names = OUTPUTS["compress"]
    with paddle.no_grad():
        expected = dict(zip(names, (x.numpy() for x in layer(inputs)), strict=False))
    arrays = {name: x.numpy() for name, x in inputs.items()}
    for name, found in zip(names, session.run(list(names), arrays), strict=True):
        if name == "visual_embeds":
            np.testing.assert_allclose(found, expected[name], atol=2e-6)
        else:
            np.testing.assert_array_equal(found, expected[name], err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_a_method_agrees_with_itself(
    name: str, graphs: Path, golden_checkpoint: Checkpoint
) -> None:
    layer = build("compress", golden_checkpoint, CASES[name])
    session = onnxruntime.InferenceSession(
        str(graphs / f"{name}.onnx"), providers=["CPUExecutionProvider"]
    )
    tower = golden_checkpoint.spec.vision
    for batch in (1, 3, 8):
        vision, text = random_vision(
            batch, batch, tower.num_patches, tower.hidden_size, tower.projection_dim
        )
        flat = vision._replace(
            visual_score=paddle.full_like(vision.visual_score, 1 / tower.num_patches),
            patch_embeds=paddle.ones_like(vision.patch_embeds),
        )
        for budget in BUDGETS:
            run_both(layer, session, vision, text, budget)
            # Constant scores: nothing passes the filter, everything is a tie.
            run_both(layer, session, flat, text, budget)


def test_every_input_of_the_closed_list_is_exported(
    graphs: Path, golden_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also words, whose number is dynamic."""
    monkeypatch.setitem(METHODS, EVERYTHING.name, EVERYTHING)
    layer = build("compress", golden_checkpoint, CompressionConfig(EVERYTHING.name))
    session = onnxruntime.InferenceSession(
        str(graphs / f"{EVERYTHING.name}.onnx"), providers=["CPUExecutionProvider"]
    )
    tower, width = golden_checkpoint.spec.vision, golden_checkpoint.spec.language.hidden_size
    for batch, length in ((1, 3), (3, 7)):
        vision, text = random_vision(
            batch, batch, tower.num_patches, tower.hidden_size, tower.projection_dim
        )
        vision = vision._replace(layer_score=vision.visual_score * 0.5)
        words = paddle.rand([batch, length, width])
        mask = paddle.arange(length) < paddle.full([batch, 1], length - 1, dtype="int64")
        for budget in BUDGETS:
            given = {"word_embeds": words, "word_mask": mask}
            run_both(layer, session, vision, text, budget, **given)


def test_another_preset_makes_another_bundle(demo_bundle: Bundle, tmp_path: Path) -> None:
    faithful = export_bundle("demo", tmp_path / "faithful", config=preset("faithful"), fused=True)
    assert config_of(faithful) == preset("faithful")
    assert OPSET >= 17
    for name in ("vision.onnx", "text.onnx", "compress.onnx", "encoder.onnx"):
        assert faithful.checksums[name] != demo_bundle.checksums[name]


def test_a_method_that_reads_less_is_exported_by_itself(
    golden_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Its vision graph leaves out the weights that nothing reads."""
    folders = golden_checkpoint.model_dir, tmp_path / "visual", golden_checkpoint.clip_dir
    bundle = export_bundle(*folders, config=CompressionConfig("visual"), decoder="none")
    assert bundle.graphs["vision"].outputs == ("features", "visual_score")
    assert bundle.graphs["compress"].inputs == ("features", "visual_score", "token_bounds")
