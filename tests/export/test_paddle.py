"""Paddle Inference: what is written for it, and what runs it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import requires
from pathlib import Path

import numpy as np
import paddle
import pytest
from rich.progress import Progress

from benchmarks.paddle_tokens import choices, compare
from export import convert, paddle_int8
from export.__main__ import main as export_main
from export.build import export_bundle
from export.errors import ExportError
from export.paddle_int8 import check_target
from export.parity import sample_inputs
from export.verify import verify_bundle
from paddle_recomp.backends.paddle_inference import PaddleInferenceBackend
from paddle_recomp.bundle import MANIFEST, SUMS, Bundle, open_bundle, write_checksums
from paddle_recomp.bundle.contract import INPUTS, Graph
from paddle_recomp.commands.main import main
from paddle_recomp.config import TokenBudget
from paddle_recomp.errors import BundleError, ConfigError, DeviceError
from paddle_recomp.vlm.demo import DEMO_CHECKPOINT, demo_folder
from paddle_recomp.vlm.loading import find_checkpoint, load_front_end
from tests.hiding import recomp_without, without

from .conftest import edit
from .test_export import content

DOCUMENT = Path(__file__).parents[2] / "docs" / "paddle.md"
QUESTION = "What color is the Circle?"
GRAPHS: tuple[Graph, ...] = ("vision", "text", "compress", "encoder")
INT8_PYTHON = os.environ.get("PADDLE_INT8_PYTHON", "")
has_bf16 = pytest.mark.skipif(
    not paddle.base.core.supports_bfloat16_fast_performance(),
    reason="this processor has no arithmetic in bfloat16",
)


@pytest.fixture
def copy(paddle_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the bundle to damage."""
    return Path(shutil.copytree(paddle_bundle.folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    spec = find_checkpoint("demo").spec
    return {
        **sample_inputs(INPUTS["encoder"], spec),
        **sample_inputs(INPUTS["compress"], spec),
    }


def wanted(graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: inputs[name] for name in INPUTS[graph]}


def test_a_bundle_lists_the_files_of_every_graph(paddle_bundle: Bundle) -> None:
    assert paddle_bundle.paddle is not None
    assert paddle_bundle.paddle.precisions == ("fp32", "bf16")
    for graph in GRAPHS:
        for name, end in zip(
            paddle_bundle.paddle.graphs[graph], (".json", ".pdiparams"), strict=True
        ):
            assert name == f"paddle/{graph}{end}"
            assert paddle_bundle.sizes[name] > 0


def test_info_names_the_precisions(
    paddle_bundle: Bundle, demo_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    for bundle, shown in ((paddle_bundle, True), (demo_bundle, False)):
        assert main(["info", str(bundle.folder)]) == 0
        assert ("paddle_inference: fp32, bf16" in capsys.readouterr().out) == shown


def test_the_same_input_gives_the_same_bytes(paddle_bundle: Bundle, tmp_path: Path) -> None:
    again = export_bundle("demo", tmp_path / "again", paddle=True, fused=True)
    assert content(again.folder) == content(paddle_bundle.folder)
    assert not any(str(tmp_path).encode() in data for data in content(again.folder).values())


def test_the_onnx_graphs_are_the_same_with_and_without(
    paddle_bundle: Bundle, demo_bundle: Bundle
) -> None:
    for graph in GRAPHS:
        name = f"{graph}.onnx"
        assert paddle_bundle.checksums[name] == demo_bundle.checksums[name]
    assert demo_bundle.paddle is None


def test_weights_that_a_full_disk_drops_are_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of a file fails a write just so: Paddle writes the rest of nothing and
    raises nothing."""
    original = convert.command

    def limited(job: convert.Job) -> list[str]:
        command = shlex.join(original(job))
        return ["bash", "-c", f"trap '' XFSZ; ulimit -f 400; exec {command}"]

    monkeypatch.setattr(convert, "command", limited)
    with pytest.raises(ExportError, match=r"'vision'.*bytes of weights: a full disk"):
        export_bundle("demo", tmp_path / "bundle", paddle=True)
    assert not list(tmp_path.iterdir())


def test_verification_covers_paddle_inference(
    paddle_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    arguments = ["verify", str(paddle_bundle.folder), "--model", "demo", "--json", str(report)]
    assert export_main(arguments) == 0
    assert "paddle fp32" in capsys.readouterr().out
    rows = json.loads(report.read_text())["rows"]
    for runtime in ("onnx fp32", "paddle fp32"):
        assert {row["stage"] for row in rows if row["runtime"] == runtime} >= set(GRAPHS)
    if paddle.base.core.supports_bfloat16_fast_performance():
        bf16 = [row for row in rows if row["runtime"] == "paddle bf16"]
        assert {row["batch"] for row in bf16} >= {1, 3, 8}
        assert {row["measure"] for row in bf16} >= {"cosine", "overlap"}


FLIPS = [
    ("vision", "vision_tower", "encoder.layers.1.mlp.fc1.weight", "features"),
    ("text", "text_tower", "encoder.layers.0.self_attn.v_proj.weight", "text_embeds"),
    ("encoder", "projector", "linear_2.weight", "visual_embeds"),
]


@pytest.fixture(scope="module")
def flipped(
    paddle_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> set[tuple[str, str, str]]:
    """The runtimes, stages and arrays that fail in a copy with flipped weights: the sign of eight
    numbers of each, where they lie in the file of a graph. Each graph is compared by itself, on the
    checkpoint's inputs; the ONNX graphs are whole."""
    folder = tmp_path_factory.mktemp("flipped") / "copy"
    shutil.copytree(paddle_bundle.folder, folder)
    for graph, part, key, _ in FLIPS:
        path = folder / "paddle" / f"{graph}.pdiparams"
        data = bytearray(path.read_bytes())
        weight = dict(find_checkpoint("demo").parameters(part))[key].astype("<f4")
        raw = (weight.T if weight.ndim == 2 else weight).tobytes()
        assert data.count(raw) == 1
        start = data.index(raw)
        for place in range(start + 3, start + 32, 4):
            data[place] ^= 0x80
        path.write_bytes(data)
    write_checksums(folder)
    rows = [row for row in verify_bundle(folder, "demo") if not row.passed]
    return {(row.runtime, row.stage, row.name) for row in rows}


@pytest.mark.parametrize(("graph", "name"), [(graph, name) for graph, _, _, name in FLIPS])
def test_a_flipped_weight_fails(graph: str, name: str, flipped: set[tuple[str, str, str]]) -> None:
    assert ("paddle fp32", graph, name) in flipped
    assert {stage for runtime, stage, _ in flipped} == {one[0] for one in FLIPS}
    assert not any(runtime.startswith("onnx") for runtime, _, _ in flipped)


@has_bf16
def test_the_compressor_stays_in_float32(
    paddle_bundle: Bundle, inputs: dict[str, np.ndarray]
) -> None:
    fp32, bf16 = (PaddleInferenceBackend(paddle_bundle, name) for name in ("fp32", "bf16"))
    given = wanted("compress", inputs)
    found, expected = bf16.run("compress", given), fp32.run("compress", given)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    pair = [b.run("vision", wanted("vision", inputs))["features"] for b in (fp32, bf16)]
    difference = np.abs(pair[0] - pair[1]).max() / np.abs(pair[0]).max()
    assert 1e-4 < difference < 0.01, "vision is not in bfloat16"
    one_shot = bf16.run("encoder", wanted("encoder", inputs))
    assert one_shot["token_count"].shape == inputs["token_bounds"].shape[:1]


@has_bf16
def test_bfloat16_keeps_the_patches_that_float32_keeps(paddle_bundle: Bundle) -> None:
    """With everything in bfloat16 the overlap was .84, with the last layer in float32 .95."""
    expected, found = (
        choices(paddle_bundle, name, 60, TokenBudget(tokens=32), Progress(disable=True))
        for name in ("fp32", "bf16")
    )
    agreement = compare(expected, found)
    assert agreement.overlap >= 0.97
    assert agreement.same_counts >= 0.4


def test_without_the_fused_graph_the_others_do_what_it_does(
    paddle_bundle: Bundle, copy: Path, inputs: dict[str, np.ndarray]
) -> None:
    fields = json.loads((copy / MANIFEST).read_text())
    for section in (fields, fields["paddle"]):
        del section["graphs"]["encoder"]
    edit(copy, graphs=fields["graphs"], paddle=fields["paddle"])
    given = wanted("encoder", inputs)
    fused, whole = (
        PaddleInferenceBackend(bundle).run("encoder", given)
        for bundle in (paddle_bundle, open_bundle(copy))
    )
    assert fused.keys() == whole.keys()
    for name, value in fused.items():
        np.testing.assert_allclose(whole[name], value, atol=1e-5 * max(np.abs(value).max(), 1))


def test_threads_take_turns(paddle_bundle: Bundle, inputs: dict[str, np.ndarray]) -> None:
    backend = PaddleInferenceBackend(paddle_bundle, threads=1)
    pixels = inputs["pixel_values"]

    def features(image: int) -> np.ndarray:
        return backend.run("vision", {"pixel_values": pixels[image : image + 1]})["features"]

    alone = [features(image) for image in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(features, [0, 1, 2, 3] * 4))
    for i, found in enumerate(together):
        np.testing.assert_array_equal(found, alone[i % 4])


def test_what_cannot_be_run_is_refused(
    paddle_bundle: Bundle, demo_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleError, match="--paddle"):
        PaddleInferenceBackend(demo_bundle)
    with pytest.raises(ConfigError, match=r"int4.*fp32, bf16"):
        PaddleInferenceBackend(paddle_bundle, "int4")
    with pytest.raises(ConfigError, match="threads is 0"):
        PaddleInferenceBackend(paddle_bundle, threads=0)
    with pytest.raises(DeviceError, match="available: cpu"):
        PaddleInferenceBackend(paddle_bundle, device="gpu:99")
    monkeypatch.setattr(
        paddle.base.core, "supports_bfloat16_fast_performance", lambda: False, raising=True
    )
    with pytest.raises(DeviceError, match="AVX512_BF16 or AMX"):
        PaddleInferenceBackend(paddle_bundle, "bf16")
    with pytest.warns(UserWarning, match="not compared.*bf16"):
        rows = verify_bundle(paddle_bundle.folder, "demo")
    assert {row.runtime for row in rows} == {"", "onnx fp32", "paddle fp32"}


def test_a_changed_file_is_refused_when_it_is_used(
    copy: Path, inputs: dict[str, np.ndarray]
) -> None:
    backend = PaddleInferenceBackend(open_bundle(copy))
    path = copy / "paddle" / "vision.pdiparams"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    backend.run("text", wanted("text", inputs))
    with pytest.raises(BundleError, match=r"vision\.pdiparams was changed"):
        backend.run("vision", wanted("vision", inputs))
    path.unlink()
    with pytest.raises(BundleError, match=r"no .*vision\.pdiparams"):
        open_bundle(copy)


def test_a_file_that_is_no_program_is_one_clear_error(
    copy: Path, inputs: dict[str, np.ndarray]
) -> None:
    path = copy / "paddle" / "text.json"
    path.write_text("{}")
    write_checksums(copy)
    with pytest.raises(BundleError, match=r"text\.json cannot be loaded") as error:
        PaddleInferenceBackend(open_bundle(copy)).run("text", wanted("text", inputs))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"precisions": ["fp32"], "graphs": {}, "compress": {}}, r"paddle\.graphs\.vision"),
        ({"precisions": "fp32", "graphs": {}, "compress": {}}, r"paddle\.precisions"),
        ({"compress": {}}, r"paddle\.compress\.recoverable"),
        ({"precisions": ["fp32", "int8"]}, r"paddle\.int8"),
        ([], "paddle"),
    ],
)
def test_a_wrong_section_is_refused(change: object, says: str, copy: Path) -> None:
    own = json.loads((copy / MANIFEST).read_text())["paddle"]
    edit(copy, paddle={**own, **change} if isinstance(change, dict) else change)
    with pytest.raises(BundleError, match=says):
        open_bundle(copy)


def test_a_graph_in_an_unlisted_file_is_refused(copy: Path) -> None:
    section = json.loads((copy / MANIFEST).read_text())["paddle"]
    section["graphs"]["text"]["params"] = "../elsewhere"
    edit(copy, paddle=section)
    with pytest.raises(BundleError, match=r"elsewhere.*not inside"):
        open_bundle(copy)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=has_bf16)])
def test_the_command_runs_it_and_prints_nothing_else(
    precision: str, paddle_bundle: Bundle, picture: Path, tmp_path: Path
) -> None:
    """In a process of its own, because Paddle's C++ prints past Python."""
    output = tmp_path / "explained.png"
    arguments = ["explain", str(picture), QUESTION, "--output", str(output)]
    arguments += ["--model", str(paddle_bundle.folder), "--backend", "paddle"]
    command = [
        sys.executable,
        "-m",
        "paddle_recomp.commands.main",
        *arguments,
        "--precision",
        precision,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(output)]
    assert output.stat().st_size > 1000


def test_ask_gives_the_eager_answer(
    paddle_bundle: Bundle, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    bundle = ["--model", str(paddle_bundle.folder), "--backend", "paddle"]
    for options in (["--model", DEMO_CHECKPOINT], bundle):
        assert main(["ask", str(picture), QUESTION, "--json", *options]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["answer"] == answers[1]["answer"]
    assert answers[0]["visual_tokens"] == answers[1]["visual_tokens"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "{bundle}", "--backend", "tensorflow"], "onnx, paddle"),
        (["--model", "{bundle}", "--backend", "paddle", "--precision", "int4"], "fp32, bf16"),
        (["--model", "{bundle}", "--precision", "bf16"], "backend paddle"),
        (["--model", "{bundle}", "--backend", "paddle", "--device", "cuda"], "available: cpu"),
        (["--model", DEMO_CHECKPOINT, "--backend", "paddle"], "eager Paddle"),
    ],
)
def test_the_command_refuses_in_one_line(
    options: list[str],
    says: str,
    paddle_bundle: Bundle,
    picture: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [text.format(bundle=paddle_bundle.folder) for text in options]
    assert main(["ask", str(picture), QUESTION, *given]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert says in lines[0]


@pytest.mark.slow
@pytest.mark.skipif(not INT8_PYTHON, reason="PADDLE_INT8_PYTHON names no environment")
def test_int8_meets_its_target(paddle_bundle: Bundle, tmp_path: Path) -> None:
    arguments = ["--paddle", "--fused", "--paddle-int8", INT8_PYTHON]
    made = []
    for name in ("first", "second"):
        assert export_main(["--out", str(tmp_path / name), *arguments]) == 0
        made.append(content(tmp_path / name))
    assert made[0] == made[1]
    for data in made[0].values():
        assert not any(
            path.encode() in data for path in (str(tmp_path), INT8_PYTHON, "site-packages")
        )
    bundle = open_bundle(tmp_path / "first")
    assert bundle.paddle is not None
    assert bundle.paddle.precisions == ("fp32", "bf16", "int8")
    for name, data in content(paddle_bundle.folder).items():
        assert name in (MANIFEST, SUMS) or made[0][name] == data
    cosine = json.loads(made[0][MANIFEST])["paddle"]["int8"]["cosine"]
    assert cosine.keys() == {"features", "keys", "visual_score", "patch_embeds", "text_embeds"}
    assert all(0.999 <= value < 1 for value in cosine.values())
    rows = [row for row in verify_bundle(bundle.folder, "demo") if row.runtime == "paddle int8"]
    assert {row.measure for row in rows} >= {"cosine", "overlap"}
    assert all(row.passed for row in rows)
    before = content(bundle.folder)
    out = ["--out", str(bundle.folder), "--target-cosine", "0.99999"]
    assert export_main([*out, *arguments]) == 2
    assert content(bundle.folder) == before


def test_the_environment_of_int8_has_what_its_process_imports() -> None:
    """All else that an installation brings is hidden."""
    pattern, file = re.compile(r"[\w.-]+"), Path(paddle_int8.__file__).with_suffix(".txt")
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    listed = {found[0] for line in lines if (found := pattern.match(line))}
    brought = [line for line in requires("paddle-recomp") or [] if "extra ==" not in line]
    installed = {found[0] for line in brought if (found := pattern.match(line))}
    assert "platformdirs" in installed & listed
    hidden = sorted(name.replace("-", "_") for name in installed - listed)
    assert "onnxruntime" in hidden
    code = "import export.paddle_int8, export.graphs, paddle_recomp.checkpoint"
    subprocess.run([sys.executable, "-c", f"{without(*hidden)}\n{code}"], check=True)


def test_int8_that_falls_short_is_refused_with_its_numbers() -> None:
    check_target({"features": 0.9991, "keys": 0.9999}, 0.999)
    for value in (0.947, float("nan")):
        with pytest.raises(ExportError, match=rf"features {value:f}; expected 0\.999"):
            check_target({"features": value, "keys": 0.9999}, 0.999)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--paddle-int8", sys.executable], "add --paddle"),
        (["--paddle", "--paddle-int8", sys.executable], "3.1.1"),
        (["--paddle", "--paddle-int8", "{tmp}/none/python"], "cannot be run"),
    ],
)
def test_int8_needs_its_own_environment(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [text.format(tmp=tmp_path) for text in arguments]
    assert export_main(["--out", str(tmp_path / "x"), *given]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert says in lines[0]
    assert not list(tmp_path.iterdir())


def test_without_paddle_the_error_names_the_extra(paddle_bundle: Bundle, picture: Path) -> None:
    arguments = ["explain", str(picture), QUESTION, "--model", str(paddle_bundle.folder)]
    done = recomp_without(("paddle",), *arguments, "--backend", "paddle")
    assert done.returncode == 2
    assert "paddle-recomp[paddle]" in done.stderr


def test_the_documented_program_gives_what_the_runner_gives(
    paddle_bundle: Bundle, tmp_path: Path
) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(program.splitlines()) <= 24
    front_end = load_front_end(paddle_bundle, backend="paddle")
    picture = demo_folder().parent / "pictures" / "scene_0.png"
    pixels = front_end.image_processor([front_end.see([picture])[0].picture])
    ids, _ = front_end.tokenizer.encode([QUESTION], front_end.question_positions)
    np.savez(tmp_path / "inputs.npz", pixel_values=pixels, question_ids=ids)
    command = [sys.executable, "-I", "-c", program, str(paddle_bundle.folder)]
    subprocess.run([*command, str(tmp_path / "inputs.npz"), str(tmp_path / "out.npy")], check=True)
    found = np.load(tmp_path / "out.npy")
    (prompt,) = front_end.compress(front_end.see([picture]), [QUESTION], TokenBudget())
    expected = prompt.compressed[0].embeds
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
