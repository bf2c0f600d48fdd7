"""An opened checkpoint: everything verified, nothing loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_recomp.checkpoint.configs import read_clip_config, read_model_config
from paddle_recomp.checkpoint.layouts import (
    CLIP_RULES,
    Parts,
    check_part,
    model_rules,
    sort_into_parts,
)
from paddle_recomp.checkpoint.names import VISUAL_PROJECTION, expected_shapes, vision_tower
from paddle_recomp.checkpoint.shards import read_weights
from paddle_recomp.checkpoint.spec import PARTS, ModelSpec
from paddle_recomp.checkpoint.tensors import load, stored_bytes
from paddle_recomp.errors import CheckpointError, CheckpointNotFoundError
from paddle_recomp.files import is_file, is_folder


@dataclass(frozen=True)
class Checkpoint:
    """A LLaVA folder with its CLIP folder. Made by `open_checkpoint`, which has compared every
    name, shape and type with those that `spec` asks for."""

    spec: ModelSpec
    model_dir: Path
    clip_dir: Path
    _parts: Parts
    chat_template: str | None = None
    """The chat template that was asked for in place of its own: a name, or a file."""

    def parameters(self, part: str) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        """Each canonical name of a part with its array, shaped as `expected` says, in the order of
        the files. float32 and float16 come as read-only views of the file, bfloat16 is widened to
        float32. An array that is not kept leaves the memory before the next one comes.

        Raises: CheckpointError for an unknown part, or a file that has gone meanwhile."""
        stored = self._part(part).items()
        for name, tensor in sorted(stored, key=lambda item: (item[1].file, item[1].offset)):
            yield name, load(tensor)

    def parameter(self, part: str, name: str) -> np.ndarray[Any, Any]:
        """One parameter by its canonical name, as `parameters` gives it.

        Raises: CheckpointError for an unknown part or name, or a file that has gone meanwhile."""
        stored = self._part(part)
        if name not in stored:
            raise CheckpointError(f"{part} has no parameter {name!r}")
        return load(stored[name])

    def expected(self, part: str) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape of every parameter of a part.

        Raises: CheckpointError for an unknown part."""
        self._part(part)
        return expected_shapes(self.spec)[part]

    def num_parameters(self, part: str) -> int:
        """How many numbers a part has.

        Raises: CheckpointError for an unknown part."""
        return sum(tensor.size for tensor in self._part(part).values())

    def num_bytes(self, part: str) -> int:
        """How many bytes a part takes as stored.

        Raises: CheckpointError for an unknown part."""
        return sum(tensor.nbytes for tensor in self._part(part).values())

    def dtypes(self, part: str) -> tuple[str, ...]:
        """The types in which a part is stored, sorted.

        Raises: CheckpointError for an unknown part."""
        return tuple(sorted({tensor.dtype for tensor in self._part(part).values()}))

    def fingerprint(self) -> str:
        """A checksum that tells checkpoints apart without reading all of them: of the name, shape
        and type of every tensor, and of its first 4096 bytes as they are stored.

        Raises: CheckpointError when a file has gone meanwhile."""
        digest = hashlib.sha256()
        for part in PARTS:
            for name, tensor in sorted(self._parts[part].items()):
                digest.update(f"{part} {name} {tensor.dtype} {tensor.shape} ".encode())
                digest.update(stored_bytes(tensor, 4096))
        return digest.hexdigest()

    def _part(self, part: str) -> dict[str, Any]:
        if part not in PARTS:
            raise CheckpointError(f"unknown part {part!r}; known: {', '.join(PARTS)}")
        return self._parts[part]


def open_checkpoint(
    model: Path, clip: Path | None = None, chat_template: str | None = None
) -> Checkpoint:
    """Reads the configs and the headers of both folders and verifies them; loads no weights.
    `clip` is `<model>/clip` when it is not given. `chat_template` is looked at by `prompt_format`.

    Raises: CheckpointNotFoundError for folders and files that are not there; CheckpointError for
    anything in them that is not as it should be."""
    if not is_folder(model):
        raise CheckpointNotFoundError(f"{model} is not a folder")
    if not is_file(model / "config.json"):
        raise CheckpointNotFoundError(
            f"{model / 'config.json'} does not exist: not a checkpoint (nor is there a "
            "recomp.json, which a bundle has)"
        )
    if clip is None:
        clip = model / "clip"
        if not is_folder(clip):
            raise CheckpointNotFoundError(
                f"{model} has no text tower, which reads the question; name the folder of the "
                f"CLIP model whose vision tower it uses (--clip DIR), or place it at {clip}"
            )
    clip_config = read_clip_config(clip)
    spec = read_model_config(model, clip_config)
    expected = expected_shapes(spec)

    clip_parts = sort_into_parts(clip, read_weights(clip), CLIP_RULES)
    check_part(
        clip, "vision_tower", clip_parts.get("vision_tower", {}), vision_tower(clip_config.vision)
    )
    check_part(clip, "text_tower", clip_parts.get("text_tower", {}), expected["text_tower"])

    parts = sort_into_parts(model, read_weights(model), model_rules(spec))
    if spec.layout == "llava_hf" or "vision_tower" in parts:
        own = dict(expected["vision_tower"])
        del own[VISUAL_PROJECTION]
        check_part(model, "vision_tower", parts.get("vision_tower", {}), own)
        parts["vision_tower"][VISUAL_PROJECTION] = clip_parts["vision_tower"][VISUAL_PROJECTION]
    elif spec.trained_vision_tower:
        raise CheckpointError(
            f"{model / 'config.json'}: unfreeze_mm_vision_tower is true, so the vision tower was "
            "trained with the model; expected its weights in the folder, found none"
        )
    else:
        parts["vision_tower"] = clip_parts["vision_tower"]
    parts["text_tower"] = clip_parts["text_tower"]
    if spec.language.tie_word_embeddings:
        parts.get("language_model", {}).pop("lm_head.weight", None)
    for part in ("projector", "language_model"):
        check_part(model, part, parts.get(part, {}), expected[part])
    return Checkpoint(spec, model, clip, parts, chat_template)
