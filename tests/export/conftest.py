"""Bundles, exported once: of the embedded demo, and of a model that transformers has run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddle_recomp.bundle import MANIFEST, Bundle, write_checksums
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.vlm.demo import demo_folder
from paddle_recomp.vlm.loading import find_checkpoint
from tests.preprocess.small_tokenizers import letters_of_clip, letters_of_llama

from .exports import Exports, graphs_of

GOLDEN = Path(__file__).parents[1] / "golden" / "hf_llava_tiny"


@pytest.fixture(scope="session")
def exports(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exports]:
    """What the tests export, made once for all workers of pytest-xdist, and whole in the end."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # A worker; its folder lies in that of the run.
        folder = folder.parent
    folder /= "exports"
    folder.mkdir(exist_ok=True)
    exports = Exports(folder)
    yield exports
    exports.verify()


@pytest.fixture(scope="session")
def paddle_bundle(exports: Exports) -> Bundle:
    """The demo's, with all that an export converts: with the files of Paddle Inference and with the
    fused graph, which only some tests look at."""
    return exports.bundle("paddle", paddle=True, fused=True)


@pytest.fixture(scope="session")
def demo_bundle(exports: Exports, paddle_bundle: Bundle) -> Bundle:
    """The same without the files of Paddle Inference. That its graphs are those of an export
    without them shows test_export.py."""
    with graphs_of(paddle_bundle):
        return exports.bundle("demo", fused=True)


@pytest.fixture(scope="session")
def golden_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The golden model has weights only. The demo lends what prepares its inputs, but for the
    tokenizers, which have to fit its tables."""
    folder = tmp_path_factory.mktemp("golden")
    for part, source in (("llava", "llava"), ("clip", "clip")):
        shutil.copytree(GOLDEN / source, folder / part)
        for path in (demo_folder() / part).glob("*.json"):
            if not (folder / part / path.name).exists():
                shutil.copyfile(path, folder / part / path.name)
    letters_of_clip(size=120).save(str(folder / "clip" / "tokenizer.json"))
    letters_of_llama(size=160, image=7).save(str(folder / "llava" / "tokenizer.json"))
    processor = folder / "llava" / "preprocessor_config.json"
    fields = json.loads(processor.read_text())
    fields["crop_size"] = {"height": 112, "width": 112}
    fields["size"] = {"shortest_edge": 112}
    processor.write_text(json.dumps(fields))
    return find_checkpoint(folder / "llava", folder / "clip")


@pytest.fixture(scope="session")
def golden_bundle(exports: Exports, golden_checkpoint: Checkpoint) -> Bundle:
    folders = golden_checkpoint.model_dir, golden_checkpoint.clip_dir
    return exports.bundle("golden", *folders, paddle=True, fused=True)


@pytest.fixture
def copy(demo_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the demo's bundle to damage."""
    return Path(shutil.copytree(demo_bundle.folder, tmp_path / "copy"))


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
