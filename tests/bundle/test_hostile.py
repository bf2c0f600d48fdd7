"""Bundles and checkpoints that ask for more than they may, and paths that no system has."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import onnx
import pytest

from paddle_recomp.bundle import MANIFEST, open_bundle, write_checksums
from paddle_recomp.commands.main import main
from paddle_recomp.errors import BundleError, CheckpointError, RecompError
from paddle_recomp.llm.onnx_decoder import OnnxDecoder, _buffers
from paddle_recomp.vlm.checkpoint_inputs import image_processor
from paddle_recomp.vlm.demo import demo_folder
from paddle_recomp.vlm.loading import find, find_checkpoint, load
from tests.limited import limited

from .conftest import KEPT, change


@pytest.mark.parametrize("field", ["num_layers", "cache_width", "num_kv_heads", "context"])
def test_sizes_that_would_fill_the_memory(copy: Path, field: str) -> None:
    change(copy, lambda content: content["decoder"].update({field: 10**9}))
    said = limited(
        "from paddle_recomp.vlm.loading import load\nload('copy')", 900, folder=copy.parent
    )
    assert said.startswith(
        f"BundleError: copy/recomp.json: decoder.{field} is 1000000000; expected"
    )


def test_a_graph_that_takes_a_cache_of_any_width(copy: Path) -> None:
    path = copy / "decoder.onnx"
    model = onnx.load(path, load_external_data=False)
    for value in model.graph.input:
        if value.name.startswith("past_key"):
            value.type.tensor_type.shape.dim[3].dim_param = "any"
    onnx.save(model, path)
    write_checksums(copy)
    with pytest.raises(BundleError, match=r"past_key_values\.0\.key is .*any.*recomp\.json says"):
        OnnxDecoder.from_bundle(open_bundle(copy))


def test_a_cache_beyond_the_memory_is_one_line() -> None:
    with pytest.raises(BundleError, match=r"for 10000000 positions takes 3.2e\+05 GB, which this"):
        _buffers(["a"] * 1000, (1, 1000, 10**7, 8))


def test_weights_behind_a_link(copy: Path) -> None:
    """Inside the folder it is followed; out of it, as in caches of downloads, it is refused."""
    data = copy / "decoder.onnx.data"
    (copy / "blobs").mkdir()
    data.rename(copy / "blobs" / "0123")
    data.symlink_to(Path("blobs") / "0123")
    load(copy)
    (copy / "blobs" / "0123").rename(copy.parent / "0123")
    data.unlink()
    data.symlink_to(Path("..") / "0123")
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data is a link out of .* cp -rL"):
        load(copy)


def test_a_bundle_without_its_recomp_json_is_named(copy: Path) -> None:
    (copy / MANIFEST).unlink()
    with pytest.raises(BundleError, match=r"there is no .*copy/recomp\.json: not a bundle"):
        find(copy)


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist.*recomp\.json"):
        find(tmp_path)


@pytest.mark.parametrize("path", ["x" * 300, "/".join(["y" * 100] * 50), "a\0b", "~nobody/x"])
def test_paths_that_no_system_has(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    for call in (find, find_checkpoint, lambda path: find_checkpoint("demo-checkpoint", path)):
        with pytest.raises(RecompError):
            call(path)
    if "\0" in path:
        return
    for arguments in (
        ["info", path],
        ["ask", path, "what?"],
        ["ask", "what?", "--model", path],
        ["verify", path],
        ["bench", path],
        ["chat", path],
    ):
        assert main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_question_of_300_letters_is_no_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "what? " * 60, "--max-new-tokens", "1"]) == 0


def test_the_side_of_pictures_is_compared_with_the_tower(tmp_path: Path) -> None:
    shutil.copytree(demo_folder() / "llava", tmp_path / "llava")
    for crop in (112, {"height": 112, "width": 112}):
        _change_processor(tmp_path / "llava", crop_size=crop)
        checkpoint = find_checkpoint(tmp_path / "llava", demo_folder() / "clip")
        with pytest.raises(CheckpointError, match="prepared to 112 pixels a side, but the vision"):
            image_processor(checkpoint)


def _change_processor(folder: Path, **fields: object) -> None:
    path = folder / "preprocessor_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **fields}), encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_size": 10**6}, "crop_size is 1000000; the limit is 8192 (RECOMP_LIMIT_PREPARED"),
        ({"size": {"shortest_edge": 10**6}}, "size is 1000000; the limit is 8192 (RECOMP_LIMIT"),
        (
            {"crop_size": {"height": {}, "width": {}}},
            "crop_size is {'height': {}, 'width': {}}; ex",
        ),
        ({"crop_size": {"height": [1], "width": [1]}}, "; expected a number of pixels or equal"),
        ({"image_mean": [10**400, 0, 0]}, "an integer of 401 digits; the limit is 100 (RECOMP_LI"),
        ({"image_mean": [10**90, 0, 0]}, "prepared with the number 1e+90; expected at most"),
        ({"rescale_factor": 10**400}, "an integer of 401 digits; the limit is 100 (RECOMP_LIMIT"),
        ({"resample": "x" * 10**6}, "; only 3 (bicubic) is supported"),
    ],
    ids=range(8),
)
def test_a_preparation_that_asks_for_much(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    shutil.copytree(demo_folder() / "llava", tmp_path / "llava")
    _change_processor(tmp_path / "llava", **fields)
    checkpoint = find_checkpoint(tmp_path / "llava", demo_folder() / "clip")
    with pytest.raises(CheckpointError) as raised:
        image_processor(checkpoint)
    assert message in str(raised.value)
    assert len(str(raised.value)) < 300 + len(str(tmp_path))


def test_the_kept_bundle_is_still_good() -> None:
    assert os.fspath(open_bundle(KEPT).folder) == os.fspath(KEPT)
