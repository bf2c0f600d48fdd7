"""What an export leaves behind: a whole bundle, the same each time, or what was there before."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from export import convert, steps, writing
from export.__main__ import main
from export.build import export, export_bundle
from export.errors import ExportError
from export.onnx_graph import OnnxGraph
from export.optimise import check
from export.parity import sample_inputs
from export.plan import ExportPlan
from export.verify import verify_bundle
from export.writing import replaced_folder
from paddle_recomp.backends.onnx import OnnxBackend
from paddle_recomp.bundle import MANIFEST, Bundle, open_bundle
from paddle_recomp.bundle.contract import INPUTS, OUTPUTS, Graph
from paddle_recomp.errors import BundleError, CheckpointNotFoundError, ConfigError
from paddle_recomp.vlm.demo import DEMO_CHECKPOINT
from paddle_recomp.vlm.loading import find_checkpoint

from .exports import graphs_of

ROOT = Path(__file__).parents[2]
GRAPHS: tuple[Graph, ...] = ("vision", "text", "compress", "encoder")


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_input_gives_the_same_bytes(demo_bundle: Bundle, tmp_path: Path) -> None:
    """This one converts by itself; the graphs of the other are those of an export for Paddle
    Inference, too."""
    again = export_bundle(DEMO_CHECKPOINT, tmp_path / "elsewhere" / "again", fused=True)
    assert content(again.folder) == content(demo_bundle.folder)
    text = (again.folder / MANIFEST).read_text()
    assert str(tmp_path) not in text
    assert str(ROOT) not in text


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_are_valid_and_say_what_they_are(graph: Graph, demo_bundle: Bundle) -> None:
    model = onnx.load(demo_bundle.folder / f"{graph}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {o.domain: o.version for o in model.opset_import}[""] >= 17
    assert tuple(value.name for value in model.graph.input) == INPUTS[graph]
    assert tuple(value.name for value in model.graph.output) == OUTPUTS[graph]
    for value in (*model.graph.input, *model.graph.output):
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert dims[0] == "batch"
        assert all(dims)
    metadata = {item.key: item.value for item in model.metadata_props}
    manifest = json.loads((demo_bundle.folder / MANIFEST).read_text())
    assert metadata["recomp.graph"] == graph
    for key in ("image", "question", "sizes", "towers", "compress", "made_by"):
        assert json.loads(metadata[f"recomp.{key}"]) == manifest[key]
    assert metadata["recomp.precision"] == "fp32"
    compressors = {"compress": manifest["compress"]["graphs"]["recoverable"]}
    shapes = {
        entry["name"]: entry["shape"]
        for side in ("inputs", "outputs")
        for entry in {**manifest["graphs"], **compressors}[graph][side]
    }
    assert shapes[OUTPUTS[graph][0]][0] == "batch"


def test_the_fused_graph_is_written_on_request(demo_bundle: Bundle, tmp_path: Path) -> None:
    """Without it, the other graphs do what it does, and are compared as a whole in its place."""
    heard: list[tuple[int, int, str]] = []
    with graphs_of(demo_bundle):
        made = export(ExportPlan(), tmp_path / "bundle", lambda *step: heard.append(step))
    names = ("vision", "text", "compress", "decoder", "tokenizers", "checksums")
    assert heard == [(done, len(names), name) for done, name in enumerate(names)]
    bundle = made.bundle
    assert made.outcome is None
    assert bundle.graphs.keys() == {"vision", "text", "compress"}
    assert not any(name.startswith("encoder") for name in bundle.sizes)
    inputs = sample_inputs(INPUTS["encoder"], find_checkpoint("demo").spec)
    fused, whole = (OnnxBackend(b).run("encoder", inputs) for b in (demo_bundle, bundle))
    assert fused.keys() == whole.keys()
    for name, value in fused.items():
        np.testing.assert_allclose(whole[name], value, atol=1e-5 * max(np.abs(value).max(), 1))
    rows = verify_bundle(bundle.folder, "demo")
    assert [row for row in rows if not row.passed] == []
    stages = {row.stage for row in rows}
    copied = {"recomp.json", "tokenizer"}
    assert stages == {"inputs", "vision", "text", "compress", "pipeline", "decoder"} | copied


def test_further_compress_graphs_stand_beside_the_default(
    demo_bundle: Bundle, tmp_path: Path
) -> None:
    """Over one vision graph, which gives what any of them reads."""
    arguments = ["--method", "uniform", "--also", "recoverable", "--decoder", "none"]
    # The others are converted here.
    with graphs_of(demo_bundle, text="text", compress_recoverable="compress"):
        assert main([*arguments, "--out", str(tmp_path / "bundle")]) == 0
    bundle = open_bundle(tmp_path / "bundle")
    assert list(bundle.compressors) == ["uniform", "recoverable"]
    assert (bundle.folder / "compress_recoverable.onnx").is_file()
    assert "keys" not in bundle.compressors["uniform"].graph.inputs
    assert bundle.graphs["vision"].outputs == OUTPUTS["vision"]
    rows = verify_bundle(bundle.folder, "demo")
    assert [row for row in rows if not row.passed] == []
    stages = {row.stage for row in rows}
    assert {"compress", "compress (recoverable)", "pipeline (recoverable)"} <= stages


def test_attention_is_fused_and_noise_is_gone(demo_bundle: Bundle) -> None:
    vision = onnx.load(demo_bundle.folder / "vision.onnx")
    kinds = [node.op_type for node in vision.graph.node]
    assert kinds.count("MultiHeadAttention") == 5, "one for each layer of the demo's tower"
    assert kinds.count("Softmax") == 1, "the class token's attention, which scores the patches"
    assert not {"Identity", "Constant"} & set(kinds)
    weights = {item.name for item in vision.graph.initializer}
    assert "vision_tower.encoder.layers.0.self_attn.q_proj.weight" in weights


def test_a_killed_conversion_names_its_graph_and_leaves_the_old_bundle(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(copy)

    def dies(job: convert.Job) -> list[str]:
        end = "os.abort()" if job.graph == "text" else "pass"
        code = f"import os; open({job.output!r}, 'wb').write(b'half'); {end}"
        return [sys.executable, "-c", code]

    monkeypatch.setattr(convert, "command", dies)
    with pytest.raises(ExportError, match=r"'text'.*SIGABRT"):
        export_bundle("demo", copy)
    assert content(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("pass", "wrote nothing"),
        ("import sys; sys.exit(convert._FAILED + 'No space left on device')", "No space left"),
        ("import sys; sys.exit(255)", "code 255"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "out of memory"),
    ],
)
def test_a_failed_conversion_says_why(
    code: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"from export import convert; {code}"
    monkeypatch.setattr(convert, "command", lambda job: [sys.executable, "-c", code])
    with pytest.raises(ExportError, match=rf"'vision'.*{says}"):
        export_bundle("demo", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def fill_disk(folder: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_bundle(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(copy)
    monkeypatch.setattr(steps, "convert", lambda job: None)
    monkeypatch.setattr(steps, "write_manifest", lambda folder, manifest: fill_disk(folder))
    with pytest.raises(ExportError, match="No space left"):
        export_bundle("demo", copy)
    assert content(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_kill_in_the_middle_leaves_the_old_bundle(copy: Path) -> None:
    """SIGKILL, which no handler sees, as soon as the new folder is there; the next export clears
    away what was left."""
    before = content(copy)
    command = [sys.executable, "-m", "export", "--out", str(copy)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (found := list(copy.parent.glob(f".{copy.name}.partial-*/new"))):
        assert process.poll() is None, "the export ended before it began"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert content(copy) == before
    open_bundle(copy).verify()
    (partial,) = found
    assert partial.exists()
    with replaced_folder(copy) as folder:
        assert not partial.exists()
        (folder / MANIFEST).write_text("the next")


def test_what_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("…")
    (tmp_path / "file").write_text("…")
    for name in ("letters", "file"):
        with pytest.raises(ExportError, match=f"{name} exists and is not a bundle"):
            export_bundle("demo", tmp_path / name)
    with pytest.raises(ExportError, match="cannot be written"):
        export_bundle("demo", tmp_path / "file" / "inside")
    assert (tmp_path / "letters" / "dear.txt").is_file()


def test_bad_arguments_are_refused_before_any_work(tmp_path: Path) -> None:
    refused: list[tuple[type[Exception], Callable[[], object]]] = [
        (ConfigError, lambda: export_bundle("demo", tmp_path / "x", precision="int3")),
        (CheckpointNotFoundError, lambda: export_bundle(tmp_path / "nothing", tmp_path / "x")),
    ]
    for error, call in refused:
        with pytest.raises(error):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--out"),
        (["--out", "{tmp}/x", "--precision", "int3"], "fp32"),
        (["--out", "{tmp}/x", "--method", "magic"], "recoverable"),
        (["--out", "{tmp}/x", "--set", "members=many"], "members"),
        (["--out", "{tmp}/x", "--model", "{tmp}/nothing"], "nothing"),
        (["verify", "{tmp}/nothing"], "not a bundle"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([text.format(tmp=tmp_path) for text in arguments]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len(lines) == 1, captured.err
    assert says in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_a_tokenizer_is_refused_early(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "hf_llava_tiny"
    shutil.copytree(golden / "llava", tmp_path / "llava")
    with pytest.raises(CheckpointNotFoundError, match="tokenizer"):
        export_bundle(tmp_path / "llava", tmp_path / "x", golden / "clip")
    assert not (tmp_path / "x").exists()


def test_a_bundle_can_do_without_the_operators_of_one_runtime(tmp_path: Path) -> None:
    """The export itself compares each graph with Paddle."""
    bundle = export_bundle("demo", tmp_path / "plain", operators="onnx", decoder="none", fused=True)
    assert bundle.operators == "onnx"
    for graph in GRAPHS:
        model = onnx.load(bundle.folder / f"{graph}.onnx")
        assert {node.domain for node in model.graph.node} == {""}
        metadata = {item.key: item.value for item in model.metadata_props}
        assert metadata["recomp.operators"] == "onnx"


def test_a_large_graph_has_its_weights_in_a_second_file(
    demo_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_SINGLE_FILE", 1_000_000)
    with graphs_of(demo_bundle):
        bundle = export_bundle("demo", tmp_path / "large", decoder="none", fused=True)
    assert {name for name in bundle.sizes if name.endswith(".data")} == {
        f"{graph}.onnx.data" for graph in ("vision", "text", "encoder")
    }
    assert (bundle.folder / "encoder.onnx").stat().st_size < 400_000
    inputs = sample_inputs(INPUTS["encoder"], find_checkpoint("demo").spec)
    for ours, theirs in zip(
        *(OnnxBackend(b).run("encoder", inputs).values() for b in (bundle, demo_bundle)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    with (bundle.folder / "encoder.onnx.data").open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    with pytest.raises(BundleError, match=r"encoder.onnx.data was changed"):
        OnnxBackend(open_bundle(bundle.folder)).run("encoder", inputs)


@pytest.mark.slow
def test_a_graph_over_two_gigabytes(tmp_path: Path) -> None:
    """More than protobuf can hold in one file; needs about 8 GB of memory."""
    side, rng = 14_000, np.random.default_rng(0)
    weights = {f"w{i}": np.full((side, side), 1 / side, np.float32) for i in range(3)}
    shape = [helper.make_tensor_value_info(name, 1, ["batch", side]) for name in ("x", "y3")]
    nodes = [
        helper.make_node("MatMul", [f"y{i}" if i else "x", w], [f"y{i + 1}"])
        for i, w in enumerate(weights)
    ]
    graph = OnnxGraph(nodes, weights, shape[:1], {"y3": shape[1]}, 17)
    model = graph.model()
    check(model)
    writing.write_model(model, tmp_path / "large.onnx")
    del model, graph, weights
    assert (tmp_path / "large.onnx.data").stat().st_size > 2**31
    session = onnxruntime.InferenceSession(
        tmp_path / "large.onnx", providers=["CPUExecutionProvider"]
    )
    x = rng.random((1, side), dtype=np.float32)
    (y,) = session.run(None, {"x": x})
    np.testing.assert_allclose(y, np.full_like(x, x.mean()), rtol=1e-4)
