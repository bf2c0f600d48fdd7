"""Paddle Inference: the graphs of a bundle in Paddle's own runtime."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddle_recomp.backends.base import check_finite, run_encoder
from paddle_recomp.bundle import Bundle, PaddleInfo
from paddle_recomp.bundle.contract import Graph
from paddle_recomp.errors import BundleError, ConfigError, DeviceError, MissingDependencyError

try:
    import paddle
    from paddle import inference
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        "Paddle Inference needs paddle, which is not installed: pip install 'paddle-recomp[paddle]'"
    ) from error

from paddle_recomp.backends.devices import place

_DROPPED_PASSES = (
    # It joins integer operations as if they were float, so the compressor's indices come out wrong.
    "elementwise_act_onednn_fuse_pass",
    # It joins the text tower's mask to a product for which oneDNN has only a plain loop, which is
    # ten times slower. Other graphs gain nothing from it.
    "matmul_elementwise_add_fuse_pass",
)
_GPU_MEMORY_MB = 256
"""A predictor takes so much memory at first; it grows."""


class Predictor:
    """One graph in Paddle Inference. A predictor of Paddle keeps its inputs in itself, so threads
    that share one take turns; for work in parallel make one for each."""

    def __init__(
        self,
        program: Path,
        params: Path,
        bf16: bool = False,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        """`program` is in the PIR format, .json, or an INT8 one in the older .pdmodel; `bf16` is
        for the CPU.

        Raises: BundleError when Paddle cannot read the files."""
        try:
            config = _config(program, params, bf16, device, threads)
            self._predictor = inference.create_predictor(config)
        except Exception as error:  # Paddle raises any exception of its C++ code.
            raise BundleError(f"{program} cannot be loaded: {_reason(error)}") from error
        self._inputs: tuple[str, ...] = tuple(self._predictor.get_input_names())
        self._outputs: tuple[str, ...] = tuple(self._predictor.get_output_names())
        self._lock = threading.Lock()

    def run(self, inputs: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Arrays by name -> the first outputs, by these names. Paddle itself has numbers for
        outputs, and a graph may have further ones that nobody needs."""
        with self._lock:
            for name in self._inputs:
                handle = self._predictor.get_input_handle(name)
                handle.copy_from_cpu(np.ascontiguousarray(inputs[name]))
            self._predictor.run()
            handles = map(self._predictor.get_output_handle, self._outputs[: len(names)])
            return {name: handle.copy_to_cpu() for name, handle in zip(names, handles, strict=True)}


class PaddleInferenceBackend:
    """Runs a bundle in Paddle Inference; each graph is loaded by `open`, or when it is first used.

    In bfloat16 and INT8 only the towers run in that precision, because the compressor compares
    scores, which would round to ties. Paddle cannot keep a part of a graph in float32, so `encoder`
    then runs the other three graphs, one after the other, as it does for a bundle without
    `encoder`. INT8 is experimental."""

    def __init__(
        self,
        bundle: Bundle,
        precision: str = "fp32",
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        """`device` as Paddle names it: cpu, gpu or gpu:N. `threads` for one operator; None: as
        many as there are cores.

        Raises: BundleError when the bundle was exported without Paddle's files; ConfigError;
        DeviceError when this machine does not have the device or the precision."""
        self.files = _paddle_info(bundle)
        if precision not in self.files.precisions:
            raise ConfigError(
                f"precision {precision!r} is not in {bundle.folder} for Paddle Inference; it has: "
                f"{', '.join(self.files.precisions)}"
            )
        if threads is not None and threads < 1:
            raise ConfigError(f"threads is {threads}; expected at least one")
        place(device)
        if precision != "fp32" and device != "cpu":
            raise DeviceError(f"precision {precision!r} runs on the cpu, not on {device!r}")
        if precision == "bf16":
            check_bf16()
        self.bundle, self.precision, self.device, self.threads = bundle, precision, device, threads
        self._predictors: dict[Graph, Predictor] = {}
        self._lock = threading.Lock()

    def open(self, graphs: Sequence[Graph]) -> None:
        """Loads graphs before their first run, so that no question waits for it.

        Raises: BundleError for a broken graph."""
        for graph in graphs:
            self._predictor(graph)

    def inputs(self, graph: Graph) -> tuple[str, ...]:
        """See `Backend.inputs`."""
        return self.bundle.graphs[graph].inputs

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Backend.run`. Threads that run the same graph take turns.

        Raises: FeatureError when an output is not finite; BundleError for a broken graph."""
        if graph == "encoder" and (self.precision != "fp32" or graph not in self.files.graphs):
            return run_encoder(self, inputs)
        arrays = self._predictor(graph).run(inputs, self.bundle.graphs[graph].outputs)
        check_finite(arrays)
        return arrays

    def _predictor(self, graph: Graph) -> Predictor:
        with self._lock:
            if graph not in self._predictors:
                source = self.files.int8 if self.precision == "int8" else {}
                names = source.get(graph, self.files.graphs[graph])
                program, params = (self.bundle.verified(name) for name in names)
                bf16 = self.precision == "bf16" and graph != "compress"
                self._predictors[graph] = Predictor(
                    program, params, bf16, self.device, self.threads
                )
            return self._predictors[graph]


def check_bf16() -> None:
    """Raises: DeviceError when this processor has no arithmetic in bfloat16, where Paddle would
    compute in float32 and say so only in its log."""
    if not paddle.base.core.supports_bfloat16_fast_performance():
        raise DeviceError(
            "precision 'bf16' needs a processor with AVX512_BF16 or AMX; this one has neither"
        )


def _paddle_info(bundle: Bundle) -> PaddleInfo:
    if bundle.paddle is None:
        raise BundleError(
            f"{bundle.folder} holds nothing for Paddle Inference: export it with --paddle"
        )
    return bundle.paddle


def _config(program: Path, params: Path, bf16: bool, device: str, threads: int | None) -> Any:
    config = inference.Config(str(program), str(params))
    config.disable_glog_info()
    config.enable_memory_optim()
    if program.suffix == ".json":
        # Without both, Paddle reads a PIR program with its old executor, and fails.
        config.enable_new_ir()
        config.enable_new_executor()
    else:
        # Its operations are oneDNN's already, each with its scales.
        config.switch_ir_optim(False)
    if device != "cpu":
        config.enable_use_gpu(_GPU_MEMORY_MB, int(device.partition(":")[2] or 0))
        return config
    config.disable_gpu()
    config.set_cpu_math_library_num_threads(threads or os.cpu_count() or 1)
    config.enable_onednn()
    if bf16:
        config.enable_onednn_bfloat16()
    for name in _DROPPED_PASSES:
        config.delete_pass(name)
    return config


def _reason(error: Exception) -> str:
    """The line with the error, of Paddle's messages, which are pages of C++."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "Error" in line or line.startswith("(")), str(error))
