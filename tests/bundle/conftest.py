"""The small bundle that is kept as people have it, and copies of it to change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.golden import least_cosine, record
from paddle_recomp.bundle import MANIFEST, open_bundle, write_checksums
from paddle_recomp.vlm.demo import demo_bundle_folder

KEPT = Path(__file__).parents[1] / "golden" / "bundle_format_2"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the small bundle, in fp32."""
    return Path(shutil.copytree(KEPT, tmp_path / "copy"))


@pytest.fixture(scope="session")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's bundle, in INT8, with golden cases of this machine."""
    folder = tmp_path_factory.mktemp("int8") / "bundle"
    shutil.copytree(demo_bundle_folder(), folder)
    shutil.rmtree(folder / "golden")
    change(folder, lambda content: content.pop("golden"))
    bundle = open_bundle(folder)
    kept = json.loads((folder / MANIFEST).read_text())["quantised"]["cosine"]
    section = record(bundle, least_cosine(kept))
    change(folder, lambda content: content.update(golden=section))
    return folder


@pytest.fixture
def int8_copy(int8_bundle: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(int8_bundle, tmp_path / "int8"))


def change(folder: Path, edit: Callable[[Any], object], name: str = MANIFEST) -> None:
    """Changes the content of a JSON file of a bundle, with checksums that fit."""
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    write_checksums(folder)
