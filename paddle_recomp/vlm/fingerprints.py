"""Checksums by which models, cached features and latency profiles are recognised again."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

import platformdirs

from paddle_recomp.bundle import Bundle
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.vlm.machine import this_machine


def projector_checksum(checkpoint: Checkpoint) -> str:
    """The checksum by which a bundle recognises the checkpoint that it was exported from."""
    return _part_checksum(checkpoint, "projector")


def tower_checksum(model: Checkpoint | Bundle) -> str:
    """The checksum by which a cache knows whose features it holds. For a bundle it covers the files
    of the vision graph, in every format that the bundle has."""
    if isinstance(model, Checkpoint):
        return _part_checksum(model, "vision_tower")
    names = [*model.graphs["vision"].files]
    if model.paddle is not None:
        names += [*model.paddle.graphs["vision"], *model.paddle.int8.get("vision", ())]
    sums = [model.checksums[name] for name in names]
    return hashlib.sha256(repr(sums).encode()).hexdigest()


def latency_file(model: Checkpoint | Bundle, *run_by: str | None) -> Path:
    """The file with the latency profile of a model on this machine. Each device, backend and
    precision (`run_by`) has a file of its own. For a checkpoint only the shapes count, because only
    they decide the time."""
    if isinstance(model, Checkpoint):
        about: object = asdict(model.spec)
    else:
        about = (model.compressor, sorted(model.checksums.items()))
    digest = hashlib.sha256(repr((about, run_by, this_machine())).encode()).hexdigest()
    return platformdirs.user_cache_path("paddle_recomp") / "latency" / f"{digest[:32]}.json"


def _part_checksum(checkpoint: Checkpoint, part: str) -> str:
    digest = hashlib.sha256()
    for name in sorted(checkpoint.expected(part)):
        array = checkpoint.parameter(part, name)
        digest.update(name.encode() + array.astype("<f4").tobytes())
    return digest.hexdigest()
