"""ONNX Runtime: the graphs of a bundle, on an execution provider that is installed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from paddle_recomp.backends.base import check_finite, run_encoder
from paddle_recomp.backends.sessions import check_options, open_session
from paddle_recomp.bundle import Bundle
from paddle_recomp.bundle.contract import Graph
from paddle_recomp.errors import RecompWarning


class OnnxBackend:
    """Runs a bundle in ONNX Runtime; each graph is loaded by `open`, or when it is first used."""

    def __init__(
        self,
        bundle: Bundle,
        providers: Sequence[str] = ("cpu",),
        threads: int | None = None,
        precision: str | None = None,
    ) -> None:
        """`providers` in the order of preference, by short name; what they cannot compute runs on
        the CPU. `threads` for one operator; None: as many as there are cores. `precision` is that
        of the float part of the vision tower, for openvino: fp32 (default) or bf16.

        Warns: RecompWarning where a provider has to share a graph with the CPU.
        Raises: DeviceError listing the providers that are installed; ConfigError."""
        check_options(providers, threads, precision)
        if "openvino" in providers and bundle.operators != "onnx":
            warnings.warn(
                f"{bundle.folder} has ONNX Runtime's fused attention, which OpenVINO leaves to the "
                "CPU provider, layer by layer; export it with --operators onnx",
                RecompWarning,
                stacklevel=2,
            )
        self.bundle, self.providers, self.threads = bundle, tuple(providers), threads
        self.precision = precision
        self._sessions: dict[Graph, Any] = {}
        self._opening = threading.Lock()

    def open(self, graphs: Sequence[Graph]) -> None:
        """Loads graphs before their first run, so that no question waits for it.

        Raises: BundleError for a broken graph; DeviceError when a provider does not start."""
        for graph in graphs:
            self._session(graph)

    def inputs(self, graph: Graph) -> tuple[str, ...]:
        """See `Backend.inputs`."""
        return self.bundle.graphs[graph].inputs

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Backend.run`. Without a fused graph in the bundle, `encoder` runs the other three.

        Raises: FeatureError when an output is not finite; BundleError for a broken graph;
        DeviceError when a provider does not start."""
        if graph == "encoder" and graph not in self.bundle.graphs:
            return run_encoder(self, inputs)
        about = self.bundle.graphs[graph]
        wanted = {name: inputs[name] for name in about.inputs}
        values = self._session(graph).run(list(about.outputs), wanted)
        arrays = dict(zip(about.outputs, values, strict=True))
        check_finite(arrays)
        return arrays

    def _session(self, graph: Graph) -> Any:
        # Without a lock, threads that reach a graph at once would each open a session with weights
        # of its own.
        with self._opening:
            if graph not in self._sessions:
                self._sessions[graph] = self._open(graph)
            return self._sessions[graph]

    def _open(self, graph: Graph) -> Any:
        about = self.bundle.graphs[graph]
        self.bundle.verify_model(about.file, about.data)
        # The compressor compares scores that differ by less than a step of bfloat16, and
        # OpenVINO 2025.4 reads the INT8 table of words wrongly in it.
        precision = self.precision if graph == "vision" else None
        return open_session(
            self.bundle.folder / about.file, self.providers, self.threads, precision
        )
