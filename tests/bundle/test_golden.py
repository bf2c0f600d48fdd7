"""Golden cases: a right bundle passes, and one altered weight fails, in fp32 and in INT8."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.onnx_graph import OnnxGraph
from paddle_recomp.bundle import Bundle, open_bundle, write_checksums
from paddle_recomp.bundle.comparison import Comparison
from paddle_recomp.bundle.contract import ARRAYS, INPUTS
from paddle_recomp.bundle.golden import CASES, read_golden
from paddle_recomp.commands.main import main
from paddle_recomp.errors import BundleError
from paddle_recomp.vlm.demo import demo_bundle_folder
from paddle_recomp.vlm.loading import bundle_backend, bundle_decoder
from paddle_recomp.vlm.replay import Player, replay_cases
from tests.hiding import recomp_without

from .conftest import KEPT, change

EXPECTED = {
    "picture": {"pixel_values"},
    "question": {"question_ids"},
    "prompt": {"prompt_ids"},
    "vision": {"features", "keys", "visual_score", "patch_embeds"},
    "text": {"text_embeds"},
    "compress": {
        *("visual_embeds", "token_count", "token_index"),
        *("token_stage", "token_owner", "token_centre"),
    },
    "decoder": {"logits"},
    "answer": {"text"},
}


def replay(folder: Path, exact: bool = False) -> list[Comparison]:
    bundle = open_bundle(folder)
    golden = read_golden(bundle)
    model = None if bundle.decoder is None else bundle_decoder(bundle, "cpu")
    player = Player(bundle, lambda one: bundle_backend(one, "cpu", None, None, ()), model)
    return list(replay_cases(player, golden.exact() if exact else golden))


def broken(folder: Path, exact: bool = False) -> set[tuple[str, str]]:
    """The stages and arrays of what a replay finds wrong."""
    return {(row.stage, row.name) for row in replay(folder, exact) if not row.passed}


@pytest.mark.parametrize("folder", [KEPT, demo_bundle_folder()], ids=["fp32", "int8"])
def test_a_right_bundle_passes(folder: Path) -> None:
    rows = replay(folder)
    assert [row for row in rows if not row.passed] == []
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.stage, set()).add(row.name)
    pipeline, files = found.pop("pipeline"), found.pop("files", set())
    assert files <= {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert found == EXPECTED
    assert pipeline == (
        {"text", *EXPECTED["compress"]} if folder == KEPT else {"text", "token_index"}
    )


def alter(folder: Path, name: str, weight: str, edit: Callable[[Any], None]) -> None:
    """Changes one weight of a graph, with checksums that fit."""
    path = folder / name
    model = onnx.load(path)
    (tensor,) = (item for item in model.graph.initializer if item.name == weight)
    array = numpy_helper.to_array(tensor).copy()
    before = array.copy()
    edit(array)
    assert not np.array_equal(array, before)
    tensor.CopyFrom(numpy_helper.from_array(array, weight))
    save = {"save_as_external_data": True, "location": f"{name}.data", "size_threshold": 256}
    external = (folder / f"{name}.data").is_file()
    if external:
        (folder / f"{name}.data").unlink()
    onnx.save_model(model, path, **(save if external else {}))
    write_checksums(folder)


def negate_one(array: Any) -> None:
    """The sign of the largest number alone."""
    place = np.unravel_index(np.abs(array.astype(np.float64)).argmax(), array.shape)
    array[place] = -array[place]


def negate_eight(array: Any) -> None:
    """The signs of the first eight numbers."""
    array.reshape(-1)[:8] *= -1


def scale_all(array: Any) -> None:
    """Every number by one part in a thousand."""
    array *= 1.001


def swap_rows(array: Any) -> None:
    """The first two rows change places."""
    array[[0, 1]] = array[[1, 0]]


def reverse_rows(array: Any) -> None:
    """The first row becomes the last."""
    array[...] = array[::-1].copy()


def negate_column(array: Any) -> None:
    """The signs of a whole output channel."""
    array[..., 0] *= -1


PATCHES, TEXTS = "vision_tower.visual_projection.weight", "text_tower.text_projection.weight"
FC1 = "vision_tower.encoder.layers.0.mlp.fc1.weight"
FLOAT: list[tuple[str, str, Callable[[Any], None], tuple[str, str]]] = [
    ("vision.onnx", FC1, scale_all, ("vision", "keys")),
    ("vision.onnx", PATCHES, negate_one, ("vision", "patch_embeds")),
    ("vision.onnx", PATCHES, swap_rows, ("vision", "patch_embeds")),
    ("text.onnx", TEXTS, negate_one, ("text", "text_embeds")),
    ("text.onnx", TEXTS, scale_all, ("text", "text_embeds")),
    ("compress.onnx", "projector.linear_1.weight", negate_one, ("compress", "visual_embeds")),
    ("compress.onnx", "projector.linear_2.weight", scale_all, ("compress", "visual_embeds")),
]


@pytest.mark.parametrize(("file", "weight", "edit", "where"), FLOAT)
def test_an_altered_weight_in_fp32_fails(
    file: str, weight: str, edit: Callable[[Any], None], where: tuple[str, str], copy: Path
) -> None:
    alter(copy, file, weight, edit)
    assert where in broken(copy)


def up_by_one(array: Any) -> None:
    """Every number by one of INT8's levels, up to the highest."""
    array[...] = np.minimum(array.astype(np.int32) + 1, 127)


INT8_FC1, INT8_PATCHES, INT8_TEXTS = (f"{name}.int8" for name in (FC1, PATCHES, TEXTS))
INT8 = [
    ("vision.onnx", INT8_FC1, swap_rows, True),
    ("vision.onnx", INT8_FC1, negate_column, True),
    ("vision.onnx", INT8_FC1, negate_one, False),
    ("vision.onnx", INT8_PATCHES, negate_one, True),
    ("vision.onnx", INT8_PATCHES, negate_eight, True),
    ("vision.onnx", INT8_PATCHES, up_by_one, False),
    ("text.onnx", INT8_TEXTS, swap_rows, True),
    ("text.onnx", INT8_TEXTS, negate_column, True),
    ("text.onnx", INT8_TEXTS, up_by_one, False),
]
"""Alterations, and whether they fail anywhere. What passes costs less than INT8's own rounding."""


@pytest.mark.parametrize(("file", "weight", "edit", "everywhere"), INT8)
def test_an_altered_weight_in_int8_fails_where_it_was_recorded(
    file: str, weight: str, edit: Callable[[Any], None], everywhere: bool, int8_copy: Path
) -> None:
    """With `--exact` always; by the limits that hold on any processor, if it costs enough."""
    alter(int8_copy, file, weight, edit)
    assert broken(int8_copy, exact=True)
    if everywhere:
        assert {stage for stage, _ in broken(int8_copy)} & {"vision", "text"}


@pytest.mark.parametrize(("edit", "everywhere"), [(negate_one, False), (reverse_rows, True)])
def test_an_altered_decoder_in_int8_fails(
    edit: Callable[[Any], None], everywhere: bool, int8_copy: Path
) -> None:
    alter(int8_copy, "decoder.onnx", "lm_head.weight.int8", edit)
    assert ("decoder", "logits") in broken(int8_copy, exact=True)
    assert (("decoder", "logits") in broken(int8_copy)) == everywhere


def test_an_altered_compressor_fails_in_int8_as_in_fp32(int8_copy: Path) -> None:
    alter(int8_copy, "compress.onnx", "projector.linear_1.weight", negate_one)
    assert ("compress", "visual_embeds") in broken(int8_copy)


def keep_sums(folder: Path) -> None:
    """Writes into the cases what an export writes: of which files they were recorded."""
    sums = open_bundle(folder).sums.expected
    kept = {k: v for k, v in sums.items() if k != "recomp.json" and not k.startswith("golden/")}
    change(folder, lambda content: content.update(recorded_from=kept), CASES)


def zero_row(array: Any) -> None:
    """A row that no question uses."""
    array[700] = 0


UNUSED = [
    ("text.onnx", "text_tower.embeddings.token_embedding.weight.int8", zero_row),
    *((file, weight, edit) for file, weight, edit, everywhere in INT8 if not everywhere),
    ("decoder.onnx", "lm_head.weight.int8", negate_one),
]


@pytest.mark.parametrize(("file", "weight", "edit"), UNUSED)
def test_what_no_case_shows_is_another_file_than_was_recorded(
    file: str, weight: str, edit: Callable[[Any], None], int8_copy: Path
) -> None:
    """On any processor, and without `--exact`."""
    keep_sums(int8_copy)
    assert broken(int8_copy) == set()
    alter(int8_copy, file, weight, edit)
    assert {stage for stage, _ in broken(int8_copy)} == {"files"}


def test_a_row_of_words_that_no_case_reads_is_another_file(copy: Path) -> None:
    keep_sums(copy)
    table = np.load(copy / "embed_tokens.npy")
    table[-1] = 0
    np.save(copy / "embed_tokens.npy", table)
    write_checksums(copy)
    assert broken(copy) == {("files", "embed_tokens.npy")}
    (copy / "text.onnx").unlink()
    write_checksums(copy)
    with pytest.raises(BundleError, match=r"text\.onnx"):
        replay(copy)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_change_of_scale_in_int8_is_seen(factor: float, int8_copy: Path) -> None:
    """A cosine does not see it."""

    def scaled(array: Any) -> None:
        array *= factor

    for file, weight, name in (
        ("vision.onnx", f"{PATCHES}.scale", "patch_embeds"),
        ("text.onnx", f"{TEXTS}.scale", "text_embeds"),
    ):
        before = (int8_copy / file).read_bytes()
        alter(int8_copy, file, weight, scaled)
        found = {(row.name, row.measure) for row in replay(int8_copy) if not row.passed}
        assert (name, "length") in found
        assert (name, "cosine") not in found
        (int8_copy / file).write_bytes(before)
        write_checksums(int8_copy)


def add_fused(folder: Path) -> None:
    """Writes the three graphs as one."""
    manifest = json.loads((folder / "recomp.json").read_text())
    about = {**manifest["graphs"], "compress": manifest["compress"]["graphs"]["recoverable"]}
    names = {graph: [item["name"] for item in one["outputs"]] for graph, one in about.items()}
    parts = {
        graph: OnnxGraph.read(onnx.load(folder / f"{graph}.onnx"), names[graph]) for graph in about
    }
    inputs = {item.name: item for part in parts.values() for item in part.inputs}
    whole = OnnxGraph(
        nodes=[node for part in parts.values() for node in part.nodes],
        constants={k: v for part in parts.values() for k, v in part.constants.items()},
        inputs=[inputs[name] for name in INPUTS["encoder"]],
        outputs=parts["compress"].outputs,
        opset=parts["compress"].opset,
    )
    onnx.save_model(whole.model({}), folder / "encoder.onnx")
    entry = {**about["compress"], "file": "encoder.onnx"}
    entry["inputs"] = [
        {"name": name, "dtype": ARRAYS[name].dtype, "shape": ["batch"]}
        for name in INPUTS["encoder"]
    ]
    change(folder, lambda content: content["graphs"].update(encoder=entry))


def test_the_fused_graph_is_replayed_in_fp32(copy: Path) -> None:
    add_fused(copy)
    rows = replay(copy)
    assert [row for row in rows if not row.passed] == []
    assert {row.name for row in rows if row.stage == "encoder"} == EXPECTED["compress"]
    alter(copy, "encoder.onnx", "projector.linear_1.weight", negate_one)
    assert {stage for stage, _ in broken(copy)} == {"encoder"}


def test_the_fused_graph_is_replayed_in_int8(int8_copy: Path) -> None:
    """By the limit of the whole way."""
    add_fused(int8_copy)
    rows = [row for row in replay(int8_copy) if row.stage == "encoder"]
    assert [(row.name, row.measure, row.passed) for row in rows] == [
        ("token_index", "overlap", True)
    ]


def test_an_altered_decoder_in_fp32_fails(copy: Path) -> None:
    data = np.fromfile(copy / "decoder.onnx.data", dtype="<f4")
    data[np.abs(data).argmax()] *= -1
    data.tofile(copy / "decoder.onnx.data")
    write_checksums(copy)
    assert ("decoder", "logits") in broken(copy)


def test_an_altered_embedding_fails(copy: Path) -> None:
    table = np.load(copy / "embed_tokens.npy")
    table[:] = table[::-1].copy()
    np.save(copy / "embed_tokens.npy", table)
    write_checksums(copy)
    assert ("decoder", "logits") in broken(copy)


def test_other_preparation_fails(copy: Path) -> None:
    for edit, where in (
        (lambda c: c["image"]["mean"].reverse(), ("picture", "pixel_values")),
        (lambda c: c["question"].update(end_id=1), ("question", "question_ids")),
        (lambda c: c["prompt"].update(bos_token_id=None), ("prompt", "prompt_ids")),
        (lambda c: c["prompt"]["template"].update(begin="A "), ("prompt", "text")),
        (lambda c: c["prompt"].update(silent_ids=list(range(300, 704))), ("answer", "text")),
    ):
        original = (copy / "recomp.json").read_text()
        change(copy, edit)
        assert where in broken(copy)
        (copy / "recomp.json").write_text(original)


def test_limits_are_the_files(copy: Path) -> None:
    """So that all readers use the same."""
    alter(copy, "vision.onnx", PATCHES, scale_all)
    assert broken(copy)
    change(copy, lambda c: c["limits"].update(difference=0.5, answers=0.01), CASES)
    left = broken(copy)
    assert ("vision", "patch_embeds") not in left


def test_the_command_says_what_failed(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    assert main(["verify", str(KEPT), "--json", str(report)]) == 0
    assert "FAILED" not in capsys.readouterr().out
    content = json.loads(report.read_text())
    assert content["passed"]
    assert {row["case"] for row in content["rows"]} == {"dynamic", "capped", "exact", "full", ""}
    assert main(["verify", str(KEPT), "--quiet"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    alter(copy, "text.onnx", TEXTS, negate_one)
    assert main(["verify", str(copy), "--quiet", "--json", str(report)]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert "text_embeds" in out
    assert "pixel_values" not in out
    assert not json.loads(report.read_text())["passed"]


def test_what_cannot_be_replayed_is_one_line(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(copy, lambda c: c.pop("golden"))
    with pytest.raises(BundleError, match="no golden cases"):
        read_golden(open_bundle(copy))
    for arguments, says in (
        ([str(copy)], "--golden"),
        ([str(copy / "nothing")], "not a bundle"),
        ([str(KEPT), "--device", "tpu"], "installed: cpu"),
        ([str(KEPT), "--images", str(copy)], "--model"),
    ):
        assert main(["verify", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line


def test_a_bundle_without_a_language_model_is_replayed_up_to_there(copy: Path) -> None:
    change(copy, lambda c: c.pop("decoder"))
    rows = replay(copy)
    assert [row for row in rows if not row.passed] == []
    assert {row.stage for row in rows} == {*EXPECTED, "pipeline"} - {"decoder", "answer"}


def test_the_light_install_replays() -> None:
    """paddle is hidden from the process."""
    done = recomp_without(("paddle", "paddlenlp", "onnx"), "verify", str(demo_bundle_folder()))
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stdout


def test_nan_never_passes() -> None:
    for measure in ("difference", "agreement", "cosine"):
        assert not Comparison(1, "vision", "features", measure, float("nan"), 0.5).passed


def test_golden_cases_of_a_bundle_are_its_own(copy: Path) -> None:
    """What stands in the arrays is what the graphs give: nothing was rounded or cut."""
    bundle: Bundle = open_bundle(copy)
    golden = read_golden(bundle)
    assert golden.recorded_by["onnxruntime"]
    for case in golden.cases:
        assert case.arrays["token_count"][0] == case.arrays["token_index"].shape[1]
        assert case.arrays["visual_embeds"].shape[1:] == (case.arrays["token_count"][0], 16)
        assert case.answer is not None
        assert 0 < len(case.answer.token_ids) <= case.answer.max_new_tokens
