"""A backend that has seen some pictures before."""

from __future__ import annotations

import hashlib

import numpy as np

from paddle_recomp.backends.base import Backend
from paddle_recomp.bundle.contract import VISION_OUTPUTS, Graph
from paddle_recomp.vlm.feature_cache import FeatureCache


class CachedBackend:
    """Runs the vision tower only over pictures whose features are in no cache."""

    def __init__(self, backend: Backend, cache: FeatureCache, tower: str) -> None:
        """`tower` names everything that changes the features of the same pixels: weights, precision
        and runtime."""
        self.backend, self.cache, self.tower = backend, cache, tower

    def inputs(self, graph: Graph) -> tuple[str, ...]:
        """See `Backend.inputs`."""
        return self.backend.inputs(graph)

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Backend.run`."""
        if graph != "vision":
            return self.backend.run(graph, inputs)
        pixels = inputs["pixel_values"]
        keys = [self._key(one) for one in pixels]
        found = {key: self.cache.get(key) for key in keys}
        rows = {key: row for key, row in found.items() if row is not None}
        if missing := [key for key in found if key not in rows]:
            outputs = self.backend.run(
                graph, {"pixel_values": pixels[[keys.index(key) for key in missing]]}
            )
            for i, key in enumerate(missing):
                rows[key] = {name: value[i : i + 1] for name, value in outputs.items()}
                self.cache.put(key, rows[key])
        names = [name for name in VISION_OUTPUTS if name in rows[keys[0]]]
        return {name: np.concatenate([rows[key][name] for key in keys]) for name in names}

    def _key(self, pixels: np.ndarray) -> str:
        """The checksum of the pixels as prepared, so that another preparation has another key."""
        digest = hashlib.sha256(f"{self.tower} {pixels.dtype} {pixels.shape} ".encode())
        digest.update(pixels.tobytes())
        return digest.hexdigest()
