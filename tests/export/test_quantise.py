"""The parts of an INT8 export: samples, ranges, weights, and what stays in float."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.accuracy import quantise_towers
from export.calibration import (
    RANGE_METHODS,
    Quantisation,
    Samples,
    load_samples,
    outputs_of,
    ranges_of,
)
from export.errors import ExportError
from export.onnx_graph import OnnxGraph
from export.quantise import quantise, quantised_inputs, weight_nodes
from paddle_recomp.bundle import Bundle
from paddle_recomp.bundle.comparison import mean_cosine
from paddle_recomp.bundle.contract import OUTPUTS
from paddle_recomp.errors import ConfigError, FeatureError, ImageNotFoundError
from paddle_recomp.preprocess import ClipTokenizer
from paddle_recomp.vlm.checkpoint_inputs import image_processor
from paddle_recomp.vlm.loading import find_checkpoint


@pytest.fixture(scope="module")
def samples() -> Samples:
    return samples_for(Quantisation())


def samples_for(wanted: Quantisation) -> Samples:
    checkpoint = find_checkpoint("demo")
    tokenizer = ClipTokenizer.from_folder(checkpoint.clip_dir)
    positions = checkpoint.spec.text.max_positions
    return load_samples(wanted, image_processor(checkpoint), tokenizer, positions)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_costliest_layers_stay_in_float_until_the_target_is_met(
    kind: str, copy: Path, samples: Samples
) -> None:
    few = {graph: feeds[:3] for graph, feeds in samples.feeds.items()}
    samples = replace(samples, feeds=few)
    wanted = Quantisation(kind=kind, target_overlap=0)
    plain = quantise_towers(copy_of(copy, "plain"), wanted, samples)
    assert plain.in_float == {"vision": [], "text": []}
    assert not plain.ranking
    target = (1 + min(plain.cosine.values())) / 2
    folder = copy_of(copy, "strict")
    outcome = quantise_towers(folder, replace(wanted, target_cosine=target), samples)
    assert min(outcome.cosine.values()) >= target
    costly = [row.layer for row in outcome.ranking if row.graph == "vision"]
    assert set(outcome.in_float["vision"]) == set(costly[: len(outcome.in_float["vision"])])
    assert outcome.in_float["vision"]
    names = {
        item.name
        for graph in ("vision", "text")
        for item in onnx.load(folder / f"{graph}.onnx").graph.initializer
    }
    for layer in (*outcome.in_float["vision"], *outcome.in_float["text"]):
        weights = [f"{layer}.weight"]
        if layer.endswith(".qkv_proj"):
            weights = [weights[0].replace(".qkv_", f".{part}_") for part in "qkv"]
        for weight in weights:
            assert weight in names
            assert f"{weight}.int8" not in names


def test_the_choice_of_patches_is_held_to_a_target(copy: Path, samples: Samples) -> None:
    """Layers go back into float for it, whatever the cosines are."""
    few = replace(samples, feeds={graph: feeds[:2] for graph, feeds in samples.feeds.items()})
    plain = quantise_towers(copy_of(copy, "plain"), Quantisation(target_overlap=0), few)
    assert 0 < plain.overlap < 1
    assert not plain.ranking
    with pytest.raises(
        ExportError, match=r"an overlap of the patches kept of 1: overlap reaches 0"
    ):
        quantise_towers(copy_of(copy, "strict"), Quantisation(target_overlap=1), few)


def without_bias(graph: OnnxGraph, *rest: Any) -> OnnxGraph:
    """Quantises, and loses the numbers of a bias."""
    made, name = quantise(graph, *rest), "vision_tower.encoder.layers.2.mlp.fc2.bias"
    if name in made.constants:
        made.constants[name] = np.zeros_like(made.constants[name])
    return made


def without_addition(graph: OnnxGraph, *rest: Any) -> OnnxGraph:
    """Quantises, and loses the node that adds a bias."""
    made, name = quantise(graph, *rest), "vision_tower.encoder.layers.2.mlp.fc2.bias"
    for node in made.nodes:
        if name in node.input:
            (value,) = {*node.input} - {name}
            made.replace({node.output[0]: value})
    made.remove_unused()
    return made


@pytest.mark.parametrize(
    ("faulty", "says"), [(without_bias, r"fc2\.bias"), (without_addition, r"fc2\.bias|nodes")]
)
def test_what_is_lost_besides_rounding_is_refused(
    faulty: Callable[..., OnnxGraph],
    says: str,
    copy: Path,
    samples: Samples,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It costs no more than INT8 itself, so that no target sees it."""
    monkeypatch.setattr("export.accuracy.quantise", faulty)
    loose = Quantisation(target_cosine=0.9995, target_overlap=0.8)
    with pytest.raises(ExportError, match=says):
        quantise_towers(copy, loose, samples)


def copy_of(folder: Path, name: str) -> Path:
    return Path(shutil.copytree(folder, folder.with_name(name)))


def test_ranges_hold_what_was_seen(demo_bundle: Bundle, samples: Samples) -> None:
    model = onnx.load(demo_bundle.folder / "text.onnx")
    values = sorted(quantised_inputs(OnnxGraph.read(model, OUTPUTS["text"])).values())[:3]
    feeds = samples.feeds["text"][:4]
    widest = ranges_of(model, values, feeds, "minmax")
    for calibration in RANGE_METHODS:
        found = ranges_of(model, values, feeds, calibration)
        for name in values:
            assert widest[name][0] <= found[name][0] <= 0 <= found[name][1] <= widest[name][1]
            assert found[name][1] > found[name][0]


def test_weights_without_numbers_are_refused(demo_bundle: Bundle, samples: Samples) -> None:
    model = onnx.load(demo_bundle.folder / "text.onnx")
    for item in model.graph.initializer:
        if item.name.endswith("layers.0.mlp.fc1.weight"):
            item.raw_data = np.full(list(item.dims), np.nan, np.float32).tobytes()
    values = quantised_inputs(OnnxGraph.read(model, OUTPUTS["text"])).values()
    with pytest.raises(FeatureError, match="NaN"):
        ranges_of(model, list(dict.fromkeys(values)), samples.feeds["text"][:1], "minmax")


def test_a_table_has_a_scale_for_each_row(demo_bundle: Bundle, samples: Samples) -> None:
    model = onnx.load(demo_bundle.folder / "text.onnx")
    graph = OnnxGraph.read(model, OUTPUTS["text"])
    (name,) = (key for key, node in weight_nodes(graph).items() if node.op_type == "Gather")
    made = quantise(graph, [name], None)
    levels, scale = made.constants[f"{name}.int8"], made.constants[f"{name}.scale"]
    assert scale.shape == (len(levels), 1)
    assert (np.abs(levels).max(axis=1) == 127).all()
    feeds = samples.feeds["text"][:1]
    (before,), (after,) = (outputs_of(m, "text", feeds) for m in (model, made.model()))
    cosine = mean_cosine(before["text_embeds"], after["text_embeds"])
    assert 0.999 < cosine < 1


def test_a_weight_is_within_half_a_step_of_what_it_was(demo_bundle: Bundle) -> None:
    graph = OnnxGraph.read(onnx.load(demo_bundle.folder / "text.onnx"), OUTPUTS["text"])
    name = next(k for k, n in weight_nodes(graph).items() if n.op_type == "MatMul")
    graph.constants[name] = graph.constants[name].copy()
    graph.constants[name][:, 3] = 0
    made = quantise(graph, [name], None).constants
    levels, scale = made[f"{name}.int8"], made[f"{name}.scale"]
    assert scale.shape == (levels.shape[1],)
    assert np.isfinite(scale).all()
    assert np.abs(levels * scale - graph.constants[name]).max() <= scale.max() * 0.5001
    assert (np.abs(levels).max(axis=0)[:3] == 127).all(), "each channel uses all its levels"
    assert name not in made
    assert name in graph.constants, "the graph that was given is as it was"


def test_pictures_and_questions_are_the_callers(picture: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.txt"
    questions.write_text("what is red?\n\nwhere is it?\nwhat is red?\n", encoding="utf-8")
    wanted = Quantisation(pictures=picture.parent, questions=questions)
    own = samples_for(wanted)
    assert [len(own.feeds[graph]) for graph in ("vision", "text")] == [1, 2]
    assert own.description["pictures"]["count"] == 1
    assert own.description == samples_for(wanted).description
    shipped = samples_for(Quantisation()).description
    assert own.description["pictures"]["sha256"] != shipped["pictures"]["sha256"]
    assert own.description["questions"]["sha256"] != shipped["questions"]["sha256"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ImageNotFoundError, match="empty"):
        samples_for(Quantisation(pictures=empty))
    questions.write_text("\n")
    for path in (questions, tmp_path / "missing"):
        with pytest.raises(ConfigError, match=path.name):
            samples_for(Quantisation(questions=path))


def test_samples_that_a_tower_cannot_read_are_one_error(demo_bundle: Bundle) -> None:
    ids = np.full((1, 32), 1_000_000, np.int64)
    with pytest.raises(ExportError, match="'text' does not run"):
        outputs_of(onnx.load(demo_bundle.folder / "text.onnx"), "text", [{"question_ids": ids}])
