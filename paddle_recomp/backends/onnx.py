"""ONNX Runtime: the graphs of a bundle, on an execution provider that is installed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from paddle_recomp.backends.base import check_finite, run_encoder
from paddle_recomp.backends.sessions import check_names, check_options, open_session, run_error
from paddle_recomp.bundle import Bundle
from paddle_recomp.bundle.contract import ARRAYS, Graph
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

        Raises: BundleError for a graph that is broken or is not what recomp.json says;
        DeviceError when a provider does not start."""
        for graph in graphs:
            self._session(graph)

    def inputs(self, graph: Graph) -> tuple[str, ...]:
        """See `Backend.inputs`."""
        return self.bundle.graphs[graph].inputs

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Backend.run`. Without a fused graph in the bundle, `encoder` runs the other three.

        Raises: FeatureError when an output is not finite; BundleError for a broken graph, or
        inputs that it does not run on; DeviceError when a provider does not start."""
        if graph == "encoder" and graph not in self.bundle.graphs:
            return run_encoder(self, inputs)
        about = self.bundle.graphs[graph]
        session = self._session(graph)
        wanted = {name: inputs[name] for name in about.inputs}
        try:
            values = session.run(list(about.read), wanted)
        except Exception as error:  # The runtime has an exception class for each status.
            raise run_error(self.bundle.folder / about.file, error) from error
        arrays = dict(zip(about.read, values, strict=True))
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
        path = self.bundle.folder / about.file
        session = open_session(path, self.providers, self.threads, precision)
        inputs, outputs = (
            {name: ARRAYS[name].dtype for name in names} for names in (about.inputs, about.read)
        )
        check_names(session, f"{path}, the graph {graph},", inputs, outputs)
        return session
