"""Exports that tests share. A run makes each of them once, in a folder that all its processes read,
and as few as possible from Paddle: an export may take the float graphs of another."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
from filelock import FileLock

from export import steps
from export.build import export_bundle
from export.convert import PADDLE_FILES, Job, convert
from export.writing import write_model
from paddle_recomp.bundle import Bundle, open_bundle
from paddle_recomp.vlm.demo import DEMO


class Exports:
    """A folder of what was exported, which belongs to one run of pytest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lent: set[Path] = set()
        """The bundles that this process has asked for."""

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """The path of that name. The first process that asks has `make` write it; others wait."""
        path, partial = self.folder / name, self.folder / f"{name}.partial"
        with FileLock(self.folder / f"{name}.lock"):
            if not path.exists():
                shutil.rmtree(partial, ignore_errors=True)
                make(partial)
                partial.rename(path)
        return path

    def bundle(
        self, name: str, model: str | Path = DEMO, clip: Path | None = None, **choices: Any
    ) -> Bundle:
        """The bundle of that name, which no test may change; `choices` are fields of ExportPlan."""
        folder = self.once(name, lambda path: export_bundle(model, path, clip, **choices))
        self.lent.add(folder)
        return open_bundle(folder)

    def verify(self) -> None:
        """Raises: BundleError when a test has changed a bundle that it was lent."""
        for folder in self.lent:
            open_bundle(folder).verify()


@contextmanager
def graphs_of(bundle: Bundle, **files: str) -> Iterator[list[Job]]:
    """Lets an export take the float graphs of a bundle, also those for Paddle Inference, which
    saves the conversions. `files` says which file of the bundle becomes which of the export, both
    without .onnx, where it is not all under their own names. Gives the conversions that the export
    asks for."""
    jobs: list[Job] = []

    def take(job: Job) -> None:
        jobs.append(job)
        if files and (job.output is None or Path(job.output).stem not in files):
            convert(job)
            return
        if job.output is not None:
            stem = Path(job.output).stem
            model = onnx.load(bundle.folder / f"{files.get(stem, stem)}.onnx")
            del model.metadata_props[:]
            onnx.helper.set_model_props(model, dict(sorted(job.metadata.items())))
            write_model(model, Path(job.output))
        if job.paddle is not None:
            for end in PADDLE_FILES:
                name = Path(f"{job.paddle}{end}").name
                shutil.copyfile(bundle.folder / "paddle" / name, f"{job.paddle}{end}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "convert", take)
        yield jobs
