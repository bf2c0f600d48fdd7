"""A backend that has seen some pictures before."""

from __future__ import annotations

import hashlib

import numpy as np

from paddle_recomp.backends.base import Backend
from paddle_recomp.bundle.contract import Graph
from paddle_recomp.vlm.feature_cache import Arrays, FeatureCache, Shapes


class CachedBackend:
    """Runs the vision tower only over pictures whose features are in no cache."""

    def __init__(
        self,
        backend: Backend,
        cache: FeatureCache,
        tower: str,
        shapes: Shapes,
        one_by_one: bool = False,
    ) -> None:
        """`tower` names everything that changes the features of the same pixels, as
        `fingerprints.tower_key`; `shapes` are those of the tower's outputs for one picture, in the
        order of their names in the contract. `one_by_one` is for a tower whose features of a
        picture depend on the others of a batch: later questions about it get those that it has
        alone."""
        self.backend, self.cache, self.tower = backend, cache, tower
        self.one_by_one = one_by_one
        self.shapes = {name: (1, *shape) for name, shape in shapes.items()}

    def inputs(self, graph: Graph) -> tuple[str, ...]:
        """See `Backend.inputs`."""
        return self.backend.inputs(graph)

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Backend.run`."""
        if graph != "vision":
            return self.backend.run(graph, inputs)
        pixels = inputs["pixel_values"]
        keys = [self._key(one) for one in pixels]
        rows = self._known(keys)
        missing = [key for key in dict.fromkeys(keys) if key not in rows]
        size = 1 if self.one_by_one else max(len(missing), 1)
        for start in range(0, len(missing), size):
            some = missing[start : start + size]
            places = [keys.index(key) for key in some]
            outputs = self.backend.run(graph, {"pixel_values": pixels[places]})
            for i, key in enumerate(some):
                rows[key] = {name: outputs[name][i : i + 1] for name in self.shapes}
                self.cache.put(key, rows[key])
        return {name: np.concatenate([rows[key][name] for key in keys]) for name in self.shapes}

    def num_missing(self, pixels: np.ndarray) -> int:
        """How many of the pictures [B, 3, S, S] the tower would run over."""
        keys = {self._key(one) for one in pixels}
        return len(keys) - len(self._known(list(keys)))

    def _known(self, keys: list[str]) -> dict[str, Arrays]:
        found = {key: self.cache.get(key, self.shapes) for key in dict.fromkeys(keys)}
        return {key: row for key, row in found.items() if row is not None}

    def _key(self, pixels: np.ndarray) -> str:
        """The checksum of the pixels as prepared, so that another preparation has another key."""
        digest = hashlib.sha256(f"{self.tower} {pixels.dtype} {pixels.shape} ".encode())
        digest.update(pixels.tobytes())
        return digest.hexdigest()
