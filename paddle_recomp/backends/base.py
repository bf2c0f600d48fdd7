"""What every backend offers: named graphs that map named arrays to named arrays."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from paddle_recomp.bundle.contract import PIPELINE, TOKENS, Graph
from paddle_recomp.errors import FeatureError


class Backend(Protocol):
    """Runs the graphs in front of the language model."""

    def inputs(self, graph: Graph) -> tuple[str, ...]:
        """The names of everything that a graph takes."""
        ...

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays by name, all that the graph takes and perhaps more -> its outputs by name."""
        ...


def run_pipeline(backend: Backend, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs of all three graphs -> these, and what each gives on what stands before it."""
    arrays = dict(inputs)
    for graph in PIPELINE:
        arrays |= backend.run(graph, arrays)
    return arrays


def run_encoder(backend: Backend, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the graph `encoder` gives, by the graphs that it is made of."""
    arrays = run_pipeline(backend, inputs)
    return {name: arrays[name] for name in TOKENS}


def check_finite(arrays: dict[str, np.ndarray], suspect: str = "the weights") -> None:
    """Refuses what no comparison of scores could make sense of.

    Raises: FeatureError naming the array that holds NaN or infinity, and the suspect."""
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise FeatureError(f"{name} holds NaN or infinity; {suspect} are broken")
