"""The verification passes for a bundle that is right, and fails for one weight that is not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.__main__ import main
from export.errors import VerificationError
from export.verify import verify_bundle
from paddle_recomp.bundle import Bundle, write_checksums
from paddle_recomp.bundle.comparison import Comparison
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.errors import FeatureError, ImageNotFoundError


def flip(folder: Path, graph: str, weight: str) -> None:
    """Changes the sign of eight numbers of one weight, where it lies in the file; checksums
    are made to fit, so that only the numbers can tell."""
    path = folder / f"{graph}.onnx"
    (tensor,) = (item for item in onnx.load(path).graph.initializer if item.name == weight)
    data, raw = bytearray(path.read_bytes()), tensor.raw_data
    assert data.count(raw) == 1
    start = data.index(raw)
    for place in range(start + 3, start + 32, 4):
        data[place] ^= 0x80
    path.write_bytes(data)
    write_checksums(folder)


def test_a_right_bundle_passes(
    demo_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    assert main(["verify", str(demo_bundle.folder), "--model", "demo", "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert "FAILED" not in out
    content = json.loads(report.read_text())
    assert content["passed"]
    seen = {(row["batch"], row["stage"], row["name"]) for row in content["rows"]}
    for batch in (1, 3, 8):
        for name in ("features", "keys", "visual_score", "patch_embeds"):
            assert (batch, "vision", name) in seen
        assert (batch, "text", "text_embeds") in seen
        for stage in ("compress", "encoder"):
            for name in ("count", "index", "stage", "owner", "centre"):
                assert (batch, stage, f"token_{name}") in seen
            assert (batch, stage, "visual_embeds") in seen
    assert all(np.isfinite(row["value"]) for row in content["rows"])


FLIPS = [
    (1, "vision", "vision_tower.encoder.layers.1.mlp.fc1.weight", "features"),
    (2, "vision", "vision_tower.encoder.layers.4.self_attn.k_proj.weight", "keys"),
    (3, "vision", "vision_tower.visual_projection.weight", "patch_embeds"),
    (1, "text", "text_tower.encoder.layers.0.self_attn.v_proj.weight", "text_embeds"),
    (1, "compress", "projector.linear_1.weight", "visual_embeds"),
    (1, "encoder", "projector.linear_2.weight", "visual_embeds"),
]
"""Each in a copy of this number. One copy may have a weight of every graph flipped, since each
graph is compared by itself, on the checkpoint's inputs."""

Verified = tuple[dict[str, Any], str]
"""The report of the command, and what it prints."""


@pytest.fixture(scope="module")
def flipped(
    demo_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Verified]:
    """Verifies the copy of a number, once."""

    @cache
    def verified(number: int) -> Verified:
        folder = tmp_path_factory.mktemp("flipped")
        copy, report = folder / "copy", folder / "report.json"
        shutil.copytree(demo_bundle.folder, copy)
        for place, graph, weight, _ in FLIPS:
            if place == number:
                flip(copy, graph, weight)
        with redirect_stdout(StringIO()) as printed:
            command = ["verify", str(copy), "--model", "demo", "--json", str(report), "--quiet"]
            assert main(command) == 1
        return json.loads(report.read_text()), printed.getvalue()

    return verified


@pytest.mark.parametrize(
    ("number", "graph", "name"), [(number, graph, name) for number, graph, _, name in FLIPS]
)
def test_a_flipped_weight_fails(
    number: int, graph: str, name: str, flipped: Callable[[int], Verified]
) -> None:
    report, printed = flipped(number)
    assert not report["passed"]
    broken = [row for row in report["rows"] if not row["passed"]]
    assert (graph, name) in {(row["stage"], row["name"]) for row in broken}
    # What is whole passes.
    assert {row["stage"] for row in broken} == {one[1] for one in FLIPS if one[0] == number}
    assert "FAILED" in printed
    assert not re.search(r"\bok\b", printed), "what passed is not shown"


def test_another_checkpoint_is_refused(demo_bundle: Bundle, golden_checkpoint: Checkpoint) -> None:
    with pytest.raises(VerificationError, match="not exported from"):
        verify_bundle(demo_bundle.folder, golden_checkpoint.model_dir, golden_checkpoint.clip_dir)


def test_a_bundle_without_numbers_fails(copy: Path) -> None:
    path = copy / "text.onnx"
    model = onnx.load(path)
    for item in model.graph.initializer:
        if item.name == "text_tower.text_projection.weight":
            item.raw_data = np.full(list(item.dims), np.nan, np.float32).tobytes()
    path.write_bytes(model.SerializeToString(deterministic=True))
    write_checksums(copy)
    with pytest.raises(FeatureError, match="text_embeds"):
        verify_bundle(copy, "demo")


def test_nan_never_passes() -> None:
    for measure in ("difference", "agreement"):
        assert not Comparison(1, "vision", "features", measure, float("nan"), 0.5).passed


def test_pictures_come_from_a_folder(demo_bundle: Bundle, picture: Path, tmp_path: Path) -> None:
    rows = verify_bundle(demo_bundle.folder, "demo", images=picture.parent)
    assert all(row.passed for row in rows)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ImageNotFoundError, match="empty"):
        verify_bundle(demo_bundle.folder, "demo", images=empty)
