"""Bundles, exported once: of the embedded demo, and of a model that transformers has run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from export import steps
from export.build import export_bundle
from export.convert import Job
from export.writing import write_model
from paddle_recomp.bundle import MANIFEST, Bundle, write_checksums
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.vlm.demo import demo_folder
from paddle_recomp.vlm.loading import find_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden" / "hf_llava_tiny"


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With the fused graph, which only some tests look at: one export does for all."""
    return export_bundle("demo", tmp_path_factory.mktemp("demo") / "bundle", fused=True)


@pytest.fixture(scope="session")
def paddle_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo's, with the files of Paddle Inference in it."""
    folder = tmp_path_factory.mktemp("paddle") / "bundle"
    return export_bundle("demo", folder, paddle=True, fused=True)


@pytest.fixture(scope="session")
def golden_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The golden model has weights only; what prepares its inputs is lent by the demo."""
    folder = tmp_path_factory.mktemp("golden")
    for part, source in (("llava", "llava"), ("clip", "clip")):
        shutil.copytree(GOLDEN / source, folder / part)
        for path in (demo_folder() / part).glob("*.json"):
            if not (folder / part / path.name).exists():
                shutil.copyfile(path, folder / part / path.name)
    processor = folder / "llava" / "preprocessor_config.json"
    fields = json.loads(processor.read_text())
    fields["crop_size"] = {"height": 112, "width": 112}
    fields["size"] = {"shortest_edge": 112}
    processor.write_text(json.dumps(fields))
    return find_checkpoint(folder / "llava", folder / "clip")


@pytest.fixture(scope="session")
def golden_bundle(
    golden_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    folder = tmp_path_factory.mktemp("golden_bundle") / "bundle"
    return export_bundle(
        golden_checkpoint.model_dir, folder, golden_checkpoint.clip_dir, paddle=True, fused=True
    )


@pytest.fixture
def copy(demo_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the demo's bundle to damage."""
    return Path(shutil.copytree(demo_bundle.folder, tmp_path / "copy"))


@contextmanager
def graphs_of(bundle: Bundle) -> Iterator[None]:
    """Lets an export take the float graphs of a bundle, which saves the conversions."""

    def take(job: Job) -> None:
        model = onnx.load(bundle.folder / f"{job.graph}.onnx")
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, dict(sorted(job.metadata.items())))
        assert job.output is not None
        write_model(model, Path(job.output))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "convert", take)
        yield


def edit(folder: Path, *, renewed: bool = True, **fields: object) -> None:
    """Changes fields of recomp.json, where None takes a field away, by default with checksums that
    fit."""
    path = folder / MANIFEST
    manifest = {**json.loads(path.read_text()), **fields}
    manifest = {name: value for name, value in manifest.items() if value is not None}
    path.write_text(json.dumps(manifest))
    if renewed:
        write_checksums(folder)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of noise with a bright square."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, size=(240, 320, 3), dtype=np.uint8)
    pixels[40:90, 60:110] = (250, 20, 20)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    return path
