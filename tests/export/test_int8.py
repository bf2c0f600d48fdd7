"""INT8 bundles: smaller, close to fp32, the same each time, and refused where they are not."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.__main__ import main
from export.build import export_bundle
from export.calibration import Quantisation
from export.choices import compare_kept
from export.scales import SCALES, read_scales
from export.verify import verify_bundle
from paddle_recomp.bundle import MANIFEST, Bundle, open_bundle, write_checksums
from paddle_recomp.config import TokenBudget
from paddle_recomp.vlm.demo import demo_bundle_folder, demo_pictures
from paddle_recomp.vlm.loading import load_front_end

from .exports import Exports, graphs_of
from .test_export import content

GUARDED = {"features", "keys", "patch_embeds", "text_embeds", "visual_score"}


@pytest.fixture(scope="module")
def bundles(demo_bundle: Bundle, exports: Exports) -> dict[str, Bundle]:
    with graphs_of(demo_bundle):
        return {
            kind: exports.bundle(
                kind, precision="int8", quantisation=Quantisation(kind=kind), fused=True
            )
            for kind in ("dynamic", "static")
        }


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


def kinds(folder: Path, graph: str) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(folder / f"{graph}.onnx").graph.node)


@pytest.mark.parametrize("graph", ["vision", "text", "compress", "decoder"])
def test_the_packaged_bundle_is_what_an_export_writes(
    graph: str, bundles: dict[str, Bundle]
) -> None:
    """Where it is not: `make demo-bundle`."""
    packaged, again = (
        onnx.load(folder / f"{graph}.onnx").graph
        for folder in (demo_bundle_folder(), bundles["dynamic"].folder)
    )
    assert list(packaged.node) == list(again.node)
    for found, expected in zip(packaged.initializer, again.initializer, strict=True):
        assert found.name == expected.name
        values, wanted = (numpy_helper.to_array(tensor) for tensor in (found, expected))
        assert values.dtype == wanted.dtype
        # Constants folded on another processor may be rounded otherwise.
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_an_int8_bundle_is_small_close_and_says_what_it_is(
    kind: str, bundles: dict[str, Bundle], demo_bundle: Bundle
) -> None:
    bundle = open_bundle(bundles[kind].folder)
    assert bundle.precision == "int8"
    for graph, share in (("vision", 0.35), ("text", 0.35), ("encoder", 0.45)):
        size, before = (b.sizes[f"{graph}.onnx"] for b in (bundle, demo_bundle))
        assert size < share * before, graph
    fields = manifest(bundle.folder)
    assert fields["quantisation"]["kind"] == kind
    assert fields["quantisation"]["calibration"] == {"dynamic": None, "static": "minmax"}[kind]
    assert fields["quantisation"]["pictures"]["count"] >= 6
    assert len(fields["quantisation"]["pictures"]["sha256"]) == 64
    assert fields["quantised"]["cosine"].keys() == GUARDED
    assert all(0.999 <= value <= 1 for value in fields["quantised"]["cosine"].values())
    assert 0.85 <= fields["quantised"]["overlap"] < 1
    model = onnx.load(bundle.folder / "encoder.onnx")
    metadata = {item.key: item.value for item in model.metadata_props}
    assert metadata["recomp.precision"] == "int8"
    assert json.loads(metadata["recomp.quantisation"]) == fields["quantisation"]

    front_end = load_front_end(bundle)
    picture = next(iter(demo_pictures()))
    (prompt,) = front_end.compress(
        front_end.see([picture]), ["what is red?"], TokenBudget(tokens=16)
    )
    assert np.isfinite(prompt.compressed[0].embeds).all()


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_only_products_with_a_weight_of_the_towers_are_int8(
    kind: str, bundles: dict[str, Bundle], demo_bundle: Bundle
) -> None:
    folder = bundles[kind].folder
    assert kinds(folder, "compress") == kinds(demo_bundle.folder, "compress")
    for kept in ("Softmax", "LayerNormalization", "MultiHeadAttention", "Conv"):
        found, before = kinds(folder, "vision")[kept], kinds(demo_bundle.folder, "vision")[kept]
        assert found == before, kept
    types = {
        item.name: item.data_type for item in onnx.load(folder / "vision.onnx").graph.initializer
    }
    weights = [name for name in types if name.endswith(".weight.int8")]
    assert len(weights) == 5 * 6 + 1
    assert {types[name] for name in weights} == {onnx.TensorProto.INT8}
    nodes = kinds(folder, "vision")
    # Query, key and value share what they read, and so what it is rounded to.
    if kind == "dynamic":
        assert nodes["MatMulInteger"] == 31
        assert nodes["DynamicQuantizeLinear"] == 21
    else:
        assert nodes["QuantizeLinear"] == 21
        assert nodes["DequantizeLinear"] == 21 + 31


def test_the_runtime_finds_its_integer_kernels(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    import onnxruntime

    for kind, bundle in bundles.items():
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / f"{kind}.onnx")
        path = str(bundle.folder / "vision.onnx")
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        nodes = Counter(node.op_type for node in onnx.load(tmp_path / f"{kind}.onnx").graph.node)
        assert nodes["MatMulIntegerToFloat"] + nodes["DynamicQuantizeMatMul"] == 31, kind


def test_static_int8_is_repeatable(
    bundles: dict[str, Bundle], demo_bundle: Bundle, tmp_path: Path
) -> None:
    wanted = Quantisation(kind="static")
    with graphs_of(demo_bundle):
        again = export_bundle(
            "demo", tmp_path / "again", precision="int8", quantisation=wanted, fused=True
        )
    assert content(again.folder) == content(bundles["static"].folder)
    assert str(tmp_path) not in (again.folder / MANIFEST).read_text()


def test_scales_are_reused_whatever_is_measured_on(
    bundles: dict[str, Bundle], demo_bundle: Bundle, picture: Path, tmp_path: Path
) -> None:
    """With its own calibration on this picture, an export comes out otherwise."""
    towers = ("vision.onnx", "text.onnx")

    def weights(folder: Path) -> list[list[bytes]]:
        models = [onnx.load(folder / name) for name in towers]
        return [[item.SerializeToString() for item in m.graph.initializer] for m in models]

    first = bundles["static"].folder
    with graphs_of(demo_bundle):
        for name, given in (("reused", ["--scales", str(first / SCALES)]), ("own", [])):
            arguments = ["--precision", "int8", "--calibrate", str(picture.parent), *given]
            arguments += ["--target-overlap", "0"]
            if name == "own":
                arguments += ["--quantization", "static"]
            assert main([*arguments, "--out", str(tmp_path / name / "bundle")]) == 0
    reused, own = (tmp_path / name / "bundle" for name in ("reused", "own"))
    assert weights(reused) == weights(first)
    assert weights(own) != weights(first)
    ours, theirs = (json.loads((folder / SCALES).read_text()) for folder in (reused, first))
    assert ours["ranges"] == theirs["ranges"]
    assert manifest(reused)["quantisation"]["pictures"]["count"] == 1


def test_layers_that_the_scales_keep_in_float_stay_there(
    bundles: dict[str, Bundle], demo_bundle: Bundle, tmp_path: Path
) -> None:
    layer, path = "vision_tower.encoder.layers.1.mlp.fc1", tmp_path / "scales.json"
    content = json.loads((bundles["dynamic"].folder / SCALES).read_text())
    path.write_text(json.dumps({**content, "in_float": {"vision": [layer]}}))
    with graphs_of(demo_bundle):
        bundle = export_bundle(
            "demo",
            tmp_path / "bundle",
            precision="int8",
            quantisation=Quantisation(scales=read_scales(path)),
        )
    assert manifest(bundle.folder)["quantised"]["in_float"] == {"vision": [layer], "text": []}
    names = {item.name for item in onnx.load(bundle.folder / "vision.onnx").graph.initializer}
    assert f"{layer}.weight" in names
    assert f"{layer}.weight.int8" not in names


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 1}, "format 1; expected 2"),
        ({"ranges": {"vision": {"other.layer": [-1, 1]}}}, "another model.*'vision'"),
        ({"in_float": {"text": ["other.layer"]}}, "another model.*'text'.*other.layer"),
        ({"ranges": {"vision": {"a": [0.5, 1]}}}, "0.5 to 1"),
        ({"ranges": {"vision": {"a": 7}}}, "not a file of scales"),
        ({"kind": "magic"}, "unknown quantisation"),
    ],
)
def test_scales_that_do_not_fit_are_refused(
    change: dict[str, Any],
    says: str,
    bundles: dict[str, Bundle],
    demo_bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = tmp_path / "scales.json", tmp_path / "bundle"
    content = json.loads((bundles["static"].folder / SCALES).read_text())
    path.write_text(json.dumps({**content, **change}))
    with graphs_of(demo_bundle):
        assert main(["--precision", "int8", "--scales", str(path), "--out", str(out)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert re.search(says, lines[0]), lines
    assert not out.exists()


def test_dynamic_int8_is_the_default_and_repeatable(
    bundles: dict[str, Bundle],
    demo_bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report, out = tmp_path / "report.json", tmp_path / "again"
    arguments = ["--precision", "int8", "--fused", "--out", str(out), "--report", str(report)]
    with graphs_of(demo_bundle) as converted:
        assert main(arguments) == 0
    assert content(out) == content(bundles["dynamic"].folder)
    # What is converted for it is what is converted in fp32, which test_export.py repeats.
    with graphs_of(demo_bundle) as in_float:
        export_bundle("demo", tmp_path / "float", fused=True)
    assert len(converted) == 3
    assert [replace(job, metadata={}, output=None) for job in converted] == [
        replace(job, metadata={}, output=None) for job in in_float
    ]
    shown = capsys.readouterr().out
    assert "layers.4.mlp.fc2" in shown
    rows = json.loads(report.read_text())["layers"]
    assert len(rows) == (5 * 4 + 1) + (1 + 2 * 4 + 1), "linear layers and the table of words"
    for graph in ("vision", "text"):
        values = [row["cosine"] for row in rows if row["graph"] == graph]
        assert values == sorted(values)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_verification_passes(
    kind: str, bundles: dict[str, Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(bundles[kind].folder), "--model", "demo"]) == 0
    out = capsys.readouterr().out
    assert "overlap" in out
    assert "FAILED" not in out


CORRUPTED = [
    (1, "vision", "layers.1.mlp.fc1.weight.int8", "features", "cosine"),
    (2, "vision", "layers.2.mlp.fc2.weight.scale", "features", "cosine"),
    (1, "text", "layers.0.self_attn.v_proj.weight.int8", "text_embeds", "cosine"),
    (1, "compress", "projector.linear_1.weight", "visual_embeds", "difference"),
    (1, "encoder", "projector.linear_2.weight", "visual_embeds", "cosine"),
    (2, "encoder", "text_projection.weight.int8", "token_index", "overlap"),
]
"""Each in a copy of this number. One copy may have a weight of every graph corrupted, since each
graph is compared by itself, on the checkpoint's inputs."""

Broken = set[tuple[str, str, str]]
"""The stage, the array and the measure of comparisons."""


@pytest.fixture(scope="module")
def corrupted(
    bundles: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Broken]:
    """Verifies the copy of a number, once, and gives what failed."""

    @cache
    def verified(number: int) -> Broken:
        folder = tmp_path_factory.mktemp("corrupted") / "copy"
        shutil.copytree(bundles["dynamic"].folder, folder)
        for place, graph, weight, *_ in CORRUPTED:
            if place == number:
                corrupt(folder / f"{graph}.onnx", weight)
        write_checksums(folder)
        return {(r.stage, r.name, r.measure) for r in verify_bundle(folder, "demo") if not r.passed}

    return verified


def corrupt(path: Path, weight: str) -> None:
    """Changes the sign of half of the columns."""
    model = onnx.load(path)
    (tensor,) = (item for item in model.graph.initializer if item.name.endswith(weight))
    values = numpy_helper.to_array(tensor).copy()
    values[..., ::2] *= -1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path.write_bytes(model.SerializeToString(deterministic=True))


@pytest.mark.parametrize(
    ("number", "graph", "name", "measure"),
    [(number, graph, *broken) for number, graph, _, *broken in CORRUPTED],
)
def test_a_corrupted_weight_fails(
    number: int,
    graph: str,
    name: str,
    measure: str,
    corrupted: Callable[[int], Broken],
) -> None:
    broken = corrupted(number)
    assert (graph, name, measure) in broken
    # What is whole passes.
    assert {stage for stage, _, _ in broken} == {one[1] for one in CORRUPTED if one[0] == number}


def test_a_target_that_cannot_be_met_leaves_the_old_bundle(
    copy: Path, demo_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(copy)
    with graphs_of(demo_bundle):
        assert main(["--precision", "int8", "--target-cosine", "1", "--out", str(copy)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert "'vision' cannot be INT8" in lines[0]
    assert "reaches 0.999" in lines[0]
    assert content(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_overlap_counts_patches_and_compares_those_of_both() -> None:
    def kept(index: list[int], stage: list[int], embeds: list[list[float]]) -> dict[str, Any]:
        return {
            "token_count": np.array([len(index)]),
            "token_index": np.array([index]),
            "token_stage": np.array([stage]),
            "visual_embeds": np.array([embeds]),
        }

    first = kept([4, 7, -1], [0, 1, 3], [[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    second = kept([7, 9, 11, -1], [0, 0, 0, -1], [[0.0, 2.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    assert compare_kept(first, first) == (1.0, 1.0)
    assert compare_kept(first, second) == (0.25, 1.0)
    assert compare_kept(first, kept([1], [0], [[1.0, 0.0]])) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--precision", "int8", "--quantization", "magic"], "dynamic, static"),
        (["--precision", "int8", "--quantization", "static", "--calibration", "x"], "entropy"),
        (["--precision", "int8", "--calibration", "entropy"], "needs static"),
        (["--precision", "int8", "--target-cosine", "1.5"], "1.5"),
        (["--precision", "int8", "--target-cosine", "nan"], "nan"),
        (["--precision", "int8", "--scales", "{tmp}/none"], "there is no"),
        (["--operators", "magic"], "onnxruntime, onnx"),
        (["--precision", "int8", "--calibrate", "{tmp}/none"], "no picture"),
        (["--precision", "int8", "--questions", "{tmp}/none"], "cannot be read"),
        (["--quantization", "static"], "int8"),
        (["--report", "{tmp}/report.json"], "int8"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [text.format(tmp=tmp_path) for text in arguments]
    assert main(["--out", str(tmp_path / "x"), *given]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert says in lines[0]
    assert not list(tmp_path.iterdir())
