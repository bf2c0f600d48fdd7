"""A loaded model as it is written beside its answers: what it is, and where it runs."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from paddle_recomp.bundle import Bundle
from paddle_recomp.bundle.checksums import SUMS
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.errors import BundleError, BundleNotFoundError
from paddle_recomp.json_files import read_bytes
from paddle_recomp.vlm.fingerprints import projector_checksum
from paddle_recomp.vlm.runtimes import Runtime, versions


@dataclass(frozen=True)
class ModelInfo:
    """What `load` was asked for, and what it found."""

    name: str
    """A folder, `demo` or `demo-checkpoint`, as it was given."""
    source: Checkpoint | Bundle
    config: CompressionConfig | None
    """Of a checkpoint, None for the default one; a bundle has its own."""
    encoder: Runtime
    language_model: Runtime

    def model(self) -> dict[str, Any]:
        """The model as plain data. This reads a checkpoint's projector.

        Raises: CheckpointError, BundleError when its files have gone."""
        source = self.source
        if isinstance(source, Bundle):
            return {
                "name": self.name,
                "kind": "bundle",
                "sha256": bundle_checksum(source),
                "projector_sha256": source.language_model.projector_sha256,
                "method": source.method,
                "options": {**source.towers, **source.options},
                "precision": source.precision,
            }
        options = (self.config or CompressionConfig()).as_dict()
        return {
            "name": self.name,
            "kind": "checkpoint",
            "sha256": source.fingerprint(),
            "projector_sha256": projector_checksum(source),
            "method": options.pop("method"),
            "options": options,
            "precision": self.encoder.precision,
        }

    def backend(self) -> dict[str, Any]:
        """The runtimes of both parts as plain data."""
        return {"encoder": asdict(self.encoder), "language_model": asdict(self.language_model)}

    def versions(self) -> dict[str, str]:
        """Of Python and of the packages that the answer depends on, without this one's."""
        used = versions(self.encoder, self.language_model)
        return {**used, "numpy": np.__version__}


def bundle_checksum(bundle: Bundle) -> str:
    """The checksum of SHA256SUMS, which has those of all other files in it: the number that
    `sha256sum SHA256SUMS` prints in the bundle's folder.

    Raises: BundleNotFoundError, BundleError."""
    content = read_bytes(bundle.folder / SUMS, BundleError, BundleNotFoundError)
    return hashlib.sha256(content).hexdigest()
