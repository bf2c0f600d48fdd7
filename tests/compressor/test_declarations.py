"""A method is declared once, and everything that is said about it follows from that."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import paddle
import pytest

from paddle_recomp.bundle.contract import signatures
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.commands.main import main
from paddle_recomp.compression.config import PRESETS, CompressionConfig
from paddle_recomp.compression.method import INPUTS, Method, MethodInputs
from paddle_recomp.compression.registry import METHODS
from paddle_recomp.config import Options, option
from paddle_recomp.errors import ConfigError
from paddle_recomp.towers.visual_encoder import VisualEncoder
from paddle_recomp.types import Compressed
from paddle_recomp.vlm.loading import find_checkpoint

VISUAL = METHODS["visual"]


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return find_checkpoint("demo")


@pytest.mark.parametrize("name", METHODS)
def test_recomp_methods_tells_the_declaration(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["methods", name, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    method = METHODS[name]
    assert [one["name"] for one in told["options"]] == list(method.option_names)
    assert all(one["doc"].endswith(".") for one in told["options"])
    assert [stage["name"] for stage in told["stages"]] == [stage.name for stage in method.stages]
    assert told["inputs"] == list(method.inputs)
    assert main(["methods", name]) == 0
    shown = capsys.readouterr().out
    assert all(stage.meaning in shown for stage in method.stages)


def test_help_lists_every_method_and_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in (*METHODS, *PRESETS):
        assert name in shown


def test_a_declaration_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="colour"):
        replace(VISUAL, inputs=("features", "colour"))
    with pytest.raises(ValueError, match="features"):
        replace(VISUAL, inputs=("keys",))
    with pytest.raises(ValueError, match="two stages"):
        replace(VISUAL, stages=VISUAL.stages * 2)

    @dataclass(frozen=True)
    class Silent(Options):
        number: int = 1

    with pytest.raises(ValueError, match=r"'number'.*config.option"):
        replace(VISUAL, options=Silent)

    @dataclass(frozen=True)
    class Shadow(Options):
        attention: int = option(1, "A tower has one of this name.")

    with pytest.raises(ValueError, match=r"'attention'.*tower"):
        replace(VISUAL, options=Shadow)


def test_options_of_another_method_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'seed' of method 'recoverable'.*text_weight"):
        CompressionConfig(seed=1)
    carried = PRESETS["faithful"].with_options(method="visual")
    assert carried.options.outliers == "all"
    assert carried.towers == PRESETS["faithful"].towers
    # Both have an option `merge`, but not the same one.
    assert PRESETS["faithful"].options.merge == "raw"
    assert PRESETS["faithful"].with_options(method="prumerge").options.merge == "normalised"


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_that_are_none_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=f"fence is {value}; expected a finite number"):
        CompressionConfig("prumerge").with_text_options(fence=value)


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_is_plain_data_and_back(name: str) -> None:
    config = PRESETS[name]
    assert CompressionConfig(**json.loads(json.dumps(config.as_dict()))) == config


def test_a_method_that_acts_elsewhere_is_refused_by_name(
    demo: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = replace(VISUAL, name="inside", acts="in_language_model")
    monkeypatch.setitem(METHODS, "inside", elsewhere)
    with pytest.raises(ConfigError, match="'inside' acts in language model"):
        VisualEncoder(demo.spec, CompressionConfig("inside"))


def test_a_method_gets_exactly_the_inputs_that_it_declares(
    demo: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every input of the closed list, in a whole visual encoder with random weights."""
    seen: list[MethodInputs] = []

    def spy(inputs: MethodInputs, bounds: Any, options: Any) -> Compressed:
        seen.append(inputs)
        return VISUAL.compress(inputs, bounds, options)

    everything = Method(
        name="everything",
        summary="Reads all there is.",
        source="this test",
        compress=spy,
        options=VISUAL.options,
        inputs=tuple(INPUTS),
        stages=VISUAL.stages,
    )
    monkeypatch.setitem(METHODS, "everything", everything)
    spec, batch = demo.spec, 2
    encoder = VisualEncoder(spec, CompressionConfig("everything"))
    encoder.eval()
    pixels = paddle.rand([batch, 3, spec.vision.image_size, spec.vision.image_size])
    vision = encoder.vision_tower(pixels)
    words = paddle.rand([batch, 3, spec.language.hidden_size])
    given = {
        **vision._asdict(),
        "text_embeds": paddle.rand([batch, spec.text.projection_dim]),
        "word_embeds": words,
        "word_mask": paddle.ones([batch, 3], dtype="bool"),
    }
    bounds = paddle.to_tensor([[1, spec.vision.num_patches]] * batch)
    embeds, kept = encoder.compressor.compress(bounds, given)
    (inputs,) = seen
    assert all(value is not None for value in inputs)
    side = spec.vision.image_size // spec.vision.patch_size
    assert inputs.grid == (side, side)
    np.testing.assert_allclose(
        inputs.projected_patches.numpy(), encoder.projector(vision.features).numpy()
    )
    # The default layer is the last one, whose attention is the visual score.
    np.testing.assert_array_equal(inputs.layer_score.numpy(), vision.visual_score.numpy())
    assert embeds.shape[1] == int(kept.count.max())
    graphs = signatures(everything.graph_inputs)
    assert graphs["vision"].outputs == (
        "features",
        "keys",
        "visual_score",
        "patch_embeds",
        "layer_score",
    )
    assert graphs["compress"].inputs[-1] == "token_bounds"
    assert {"word_embeds", "word_mask"} <= set(graphs["encoder"].inputs)

    seen.clear()
    monkeypatch.setitem(
        METHODS, "everything", replace(everything, inputs=("features", "visual_score"))
    )
    encoder = VisualEncoder(spec, CompressionConfig("everything"))
    encoder.compressor.compress(bounds, given)
    (inputs,) = seen
    assert [name for name, value in inputs._asdict().items() if value is not None] == [
        "features",
        "visual_score",
    ]


def test_the_layer_of_the_layer_score_is_chosen(demo: Checkpoint) -> None:
    spec = demo.spec
    encoder = VisualEncoder(spec, CompressionConfig(score_layer=-2))
    pixels = paddle.rand([1, 3, spec.vision.image_size, spec.vision.image_size])
    vision = encoder.vision_tower(pixels)
    assert not np.allclose(vision.layer_score.numpy(), vision.visual_score.numpy())
    with pytest.raises(ConfigError, match=r"score_layer is -99.*-1"):
        VisualEncoder(spec, CompressionConfig(score_layer=-99))
    with pytest.raises(ConfigError, match="score_layer"):
        VisualEncoder(spec, CompressionConfig(score_layer=0))
