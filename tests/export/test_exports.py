"""Exports that tests share: made once, and the same for all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paddle_recomp.errors import BundleError
from tests.bundle.conftest import KEPT
from tests.threads import at_once

from . import exports as shared
from .exports import Exports


def test_whoever_asks_first_makes_it(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("made")

    found = at_once(8, lambda _: Exports(tmp_path).once("graphs", make))
    assert len(made) == 1
    assert set(found) == {tmp_path / "graphs"}
    assert found[0].read_text() == "made"


def test_half_of_it_is_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.mkdir()
        (path / "half").touch()
        raise OSError("a full disk")

    exports = Exports(tmp_path)
    with pytest.raises(OSError, match="a full disk"):
        exports.once("graphs", fail)
    assert not (tmp_path / "graphs").exists()
    assert not list(exports.once("graphs", Path.mkdir).iterdir())


def test_a_test_that_changes_a_bundle_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(model: str, folder: Path, clip: None) -> None:
        shutil.copytree(KEPT, folder)

    monkeypatch.setattr(shared, "export_bundle", copy)
    exports = Exports(tmp_path)
    bundle = exports.bundle("kept")
    exports.verify()
    with (bundle.folder / "text.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"text\.onnx was changed"):
        exports.verify()
