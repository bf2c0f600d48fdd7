"""ONNX Runtime: the graphs of a bundle, on whatever execution provider is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paddle_recomp.backends.base import Graph, check_finite
from paddle_recomp.bundle import Bundle
from paddle_recomp.errors import BundleError, ConfigError, DeviceError, MissingDependencyError

try:
    import onnxruntime
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        "a bundle needs onnxruntime, which is not installed: pip install 'paddle-recomp[onnx]'"
    ) from error

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}


def available_providers() -> list[str]:
    """Short names of the execution providers that this onnxruntime has."""
    installed = onnxruntime.get_available_providers()
    return [name for name, full in PROVIDERS.items() if full in installed]


class OnnxBackend:
    """Runs a bundle in ONNX Runtime; each graph is loaded when it is first used."""

    def __init__(
        self, bundle: Bundle, providers: Sequence[str] = ("cpu",), threads: int | None = None
    ) -> None:
        """`providers` in the order of preference, by short name; what they cannot compute runs
        on the CPU. `threads` for one operator; None: as many as there are cores.

        Raises: DeviceError listing the providers that are installed; ConfigError."""
        available = available_providers()
        for name in providers:
            if name not in available:
                raise DeviceError(
                    f"no execution provider {name!r} here; installed: {', '.join(available)}"
                )
        if not providers or (threads is not None and threads < 1):
            raise ConfigError("expected at least one execution provider and one thread")
        self.bundle, self.providers, self.threads = bundle, tuple(providers), threads
        self._sessions: dict[Graph, Any] = {}

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Backend.run`.

        Raises: FeatureError when what comes out is not finite; BundleError for a broken graph;
        DeviceError when a provider does not start."""
        names = self.bundle.graphs[graph].outputs
        values = self._session(graph).run(list(names), inputs)
        arrays = dict(zip(names, values, strict=True))
        check_finite(arrays)
        return arrays

    def _session(self, graph: Graph) -> Any:
        if graph not in self._sessions:
            self._sessions[graph] = self._load(graph)
        return self._sessions[graph]

    def _load(self, graph: Graph) -> Any:
        file = self.bundle.graphs[graph].file
        # Also the file of external data that a graph over 2 GB has beside it.
        self.bundle.verify(file)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads or 0
        wanted = [PROVIDERS[name] for name in self.providers]
        try:
            session = onnxruntime.InferenceSession(
                str(self.bundle.folder / file), options, providers=wanted
            )
        except Exception as error:  # The runtime has an exception class for each status.
            raise BundleError(f"{self.bundle.folder / file} cannot be loaded: {error}") from error
        # A provider whose libraries are missing is dropped by the runtime with no more than a log.
        started = session.get_providers()
        for name, full in zip(self.providers, wanted, strict=True):
            if full not in started:
                raise DeviceError(f"the execution provider {name!r} does not start on this machine")
        session.disable_fallback()
        return session
