"""The protocol of every backend: named graphs that map named arrays to named arrays."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from paddle_recomp.bundle.contract import PIPELINE, TOKENS, Graph
from paddle_recomp.errors import FeatureError


class Backend(Protocol):
    """Runs the graphs in front of the language model."""

    def inputs(self, graph: Graph) -> tuple[str, ...]:
        """The names of a graph's inputs."""
        ...

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays by name, at least the graph's inputs -> its outputs by name."""
        ...


def run_pipeline(backend: Backend, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs the three graphs, each on the inputs and the outputs of the graphs before it: the inputs
    of all three -> these inputs and all outputs."""
    arrays = dict(inputs)
    for graph in PIPELINE:
        arrays |= backend.run(graph, arrays)
    return arrays


def run_encoder(backend: Backend, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of the graph `encoder`, computed by the three graphs of which it is made."""
    arrays = run_pipeline(backend, inputs)
    return {name: arrays[name] for name in TOKENS}


def check_finite(arrays: dict[str, np.ndarray], suspect: str = "the weights") -> None:
    """Refuses arrays whose scores cannot be compared.

    Raises: FeatureError naming the array that holds NaN or infinity, and the suspect."""
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise FeatureError(f"{name} holds NaN or infinity; {suspect} are broken")
