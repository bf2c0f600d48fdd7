"""Checksums by which models, cached features and latency profiles are recognised again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import platformdirs

from paddle_recomp.bundle import Bundle
from paddle_recomp.bundle.contract import ARRAYS
from paddle_recomp.checkpoint import Checkpoint, ModelSpec
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.vlm.machine import this_machine
from paddle_recomp.vlm.runtimes import Runtime, versions

FEATURES_FORMAT, LATENCY_FORMAT = 2, 2
"""Raised when a version computes other features, or measures another time, for the same key."""


def projector_checksum(checkpoint: Checkpoint) -> str:
    """The checksum by which a bundle recognises the checkpoint that it was exported from."""
    return _part_checksum(checkpoint, "projector")


def tower_key(
    model: Checkpoint | Bundle,
    config: CompressionConfig | None,
    runtime: Runtime,
    outputs: Sequence[str],
) -> str:
    """The checksum by which a cache knows whose features it holds: of everything but the pixels
    that the vision tower's `outputs` depend on. `config` is a checkpoint's, None for the default
    one; for a bundle, the files of the vision graph have all of it in them, in every format that
    the bundle has."""
    if isinstance(model, Checkpoint):
        weights = _part_checksum(model, "vision_tower")
        about: list[Any] = [
            weights,
            *_vision_of(model.spec),
            asdict((config or CompressionConfig()).towers),
        ]
    else:
        names = [*model.graphs["vision"].files]
        if model.paddle is not None:
            names += [*model.paddle.graphs["vision"], *model.paddle.int8.get("vision", ())]
        about = [model.checksums[name] for name in names]
    return _digest(
        FEATURES_FORMAT, type(model).__name__, about, asdict(runtime), versions(runtime), outputs
    )


def feature_shapes(
    model: Checkpoint | Bundle, outputs: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """The shapes of these outputs of the vision tower, for one picture, without the batch."""
    if isinstance(model, Checkpoint):
        vision = model.spec.vision
        sizes = {"N": vision.num_patches, "C": vision.hidden_size, "P": vision.projection_dim}
    else:
        sizes = {"N": model.num_patches, "C": model.vision_width, "P": model.joint_width}
    return {name: tuple(sizes[axis] for axis in ARRAYS[name].shape[1:]) for name in outputs}


def latency_file(
    model: Checkpoint | Bundle,
    config: CompressionConfig | None,
    runtimes: Sequence[Runtime],
    language: ModelSpec | None = None,
) -> Path:
    """The file with the latency profile of a model on this machine: one for everything that decides
    the time. `runtimes` are those of the visual encoder and of the language model. `language` is
    the checkpoint whose language model answers for a bundle. Of a checkpoint only sizes and options
    count (`config` as for `tower_key`), because the values of its weights take no time."""
    if isinstance(model, Checkpoint):
        about: object = [asdict(model.spec), (config or CompressionConfig()).as_dict()]
    else:
        about = [model.compressor, model.checksums, language and asdict(language.language)]
    machine = this_machine()
    digest = _digest(
        LATENCY_FORMAT,
        type(model).__name__,
        about,
        [asdict(one) for one in runtimes],
        [machine.cpu, machine.cores, machine.system, versions(*runtimes)],
        # The eager Paddle's threads.
        os.environ.get("OMP_NUM_THREADS"),
    )
    return platformdirs.user_cache_path("paddle_recomp") / "latency" / f"{digest[:32]}.json"


def _vision_of(spec: ModelSpec) -> tuple[dict[str, Any], int]:
    return asdict(spec.vision), spec.vision_feature_layer


def _part_checksum(checkpoint: Checkpoint, part: str) -> str:
    digest = hashlib.sha256()
    for name in sorted(checkpoint.expected(part)):
        array = checkpoint.parameter(part, name)
        digest.update(name.encode() + array.astype("<f4").tobytes())
    return digest.hexdigest()


def _digest(*about: object) -> str:
    text = json.dumps([_canonical(one) for one in about], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: object) -> object:
    """The same for values that are equal: 1 and 1.0, a tuple and a list."""
    if isinstance(value, Mapping):
        return {str(name): _canonical(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(one) for one in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
