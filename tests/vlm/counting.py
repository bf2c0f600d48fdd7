"""How often the graphs in front of the language model run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from paddle_recomp.backends.base import Backend
from paddle_recomp.bundle.contract import Graph, signatures
from paddle_recomp.vlm.vlm import VLM


class CountingBackend:
    """Counts how often each graph runs, and checks the names that pass through."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.runs: Counter[str] = Counter()
        self.images = 0

    def inputs(self, graph: Graph) -> tuple[str, ...]:
        return self.backend.inputs(graph)

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.runs[graph] += 1
        self.images += len(inputs["pixel_values"]) if graph == "vision" else 0
        expected = signatures(self.backend.inputs("compress"))[graph]
        assert set(inputs) == set(expected.inputs)
        outputs = self.backend.run(graph, inputs)
        assert tuple(outputs) == expected.outputs
        return outputs


def counting(vlm: VLM) -> tuple[VLM, CountingBackend]:
    """The same model behind a counter."""
    backend = CountingBackend(vlm.front_end.backend)
    return VLM(replace(vlm.front_end, backend=backend), vlm.answerer), backend
