"""Versions of packages with several names."""

from __future__ import annotations

from importlib import metadata

import onnxruntime
import paddle
import pytest

from export.manifest import describe
from export.plan import ExportPlan
from export.versions import version_of
from paddle_recomp.vlm.loading import find_checkpoint


@pytest.fixture
def without_plain_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where paddlepaddle-gpu is installed, and ONNX Runtime by hand."""
    known = {"paddlepaddle-gpu": "3.3.1.post1", "paddle2onnx": "2.1.0", "onnx": "1.17.0"}

    def version(name: str) -> str:
        if name not in known:
            raise metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(metadata, "version", version)


def test_a_package_has_its_version() -> None:
    assert version_of("paddle") == paddle.__version__
    assert version_of("onnx") == metadata.version("onnx")


@pytest.mark.usefixtures("without_plain_names")
def test_a_package_under_another_name_has_it_too() -> None:
    assert version_of("paddle") == "3.3.1.post1"
    assert version_of("onnxruntime") == onnxruntime.__version__
    with pytest.raises(ModuleNotFoundError):
        version_of("no_such_module")


@pytest.mark.usefixtures("without_plain_names")
def test_an_export_accepts_paddle_for_gpus() -> None:
    made_by = describe(find_checkpoint("demo"), "demo", ExportPlan(model="demo"))["made_by"]
    assert made_by["paddlepaddle"] == "3.3.1.post1"
