"""Sessions of ONNX Runtime on the execution providers that are installed, chosen by name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paddle_recomp.errors import BundleError, ConfigError, DeviceError, MissingDependencyError
from paddle_recomp.json_files import one_line, shown

try:
    import onnxruntime
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        "a bundle needs onnxruntime, which is not installed: pip install onnxruntime"
    ) from error

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}

_TYPES = {
    "float32": "tensor(float)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "bool": "tensor(bool)",
}
"""What the runtime calls numpy's types."""
_LONGEST = 300
"""Characters of the runtime's words in a message."""
_OPENVINO_HINTS = {"fp32": "f32", "bf16": "bf16"}


def available_providers() -> list[str]:
    """Short names of the execution providers that this onnxruntime has."""
    installed = onnxruntime.get_available_providers()
    return [name for name, full in PROVIDERS.items() if full in installed]


def check_options(
    providers: Sequence[str], threads: int | None, precision: str | None = None
) -> None:
    """Raises: DeviceError listing the providers that are installed; ConfigError."""
    if precision is not None and "openvino" not in providers:
        raise ConfigError(
            f"ONNX Runtime computes in the precision of the bundle, not in {precision}; that is "
            "for openvino, or for backend paddle"
        )
    if precision not in (None, *_OPENVINO_HINTS):
        known = ", ".join(_OPENVINO_HINTS)
        raise ConfigError(f"openvino knows no precision {precision!r}; known: {known}")
    available = available_providers()
    for name in providers:
        if name not in available:
            raise DeviceError(
                f"no execution provider {name!r} here; installed: {', '.join(available)}"
            )
    if not providers or (threads is not None and threads < 1):
        raise ConfigError("expected at least one execution provider and one thread")


def open_session(
    path: Path,
    providers: Sequence[str],
    threads: int | None,
    precision: str | None = None,
    any_length: bool = False,
) -> Any:
    """The session of a graph. `providers` in the order of preference, by short name; what they
    cannot compute runs on the CPU. `threads` for one operator; None: as many as there are cores.
    `precision` is that of OpenVINO for the float part of the graph, by default fp32. `any_length`
    is for a graph whose inputs have another shape nearly every time.

    Raises: BundleError for a graph that cannot be loaded; DeviceError when a provider does not
    start."""
    options = onnxruntime.SessionOptions()
    # Errors are raised as well; the log would print them a second time, on lines of its own.
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or 0
    # Each session has threads of its own. After a run they would go on spinning on the cores that
    # the next session needs: the compressor took twice as long right after the vision tower.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # The runtime makes a plan for each shape, and each plan takes its own block of memory.
    options.enable_mem_pattern = not any_length
    wanted = [PROVIDERS[name] for name in providers]
    given = [_openvino(threads, precision) if name == "openvino" else {} for name in providers]
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=wanted, provider_options=given
        )
    except Exception as error:  # The runtime has an exception class for each status.
        raise BundleError(f"{path} cannot be loaded: {one_line(error, _LONGEST)}") from error
    # The runtime drops a provider whose libraries are missing, and only logs that.
    started = session.get_providers()
    for name, full in zip(providers, wanted, strict=True):
        if full not in started:
            raise DeviceError(f"the execution provider {name!r} does not start on this machine")
    session.disable_fallback()
    return session


def check_names(
    session: Any, place: str, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> None:
    """Compares a graph with what recomp.json says of it: the names with numpy's names of their
    types. The graph may give more than these outputs. `place` names the graph and its file.

    Raises: BundleError naming the first input or output that is not as it should be."""
    taken = {node.name: node.type for node in session.get_inputs()}
    given = {node.name: node.type for node in session.get_outputs()}
    for name in taken:
        if name not in inputs:
            raise BundleError(
                f"{place} takes {shown(name)}, which is not among its inputs in recomp.json"
            )
    for kind, promised, found in (("input", inputs, taken), ("output", outputs, given)):
        for name, dtype in promised.items():
            if name not in found:
                raise BundleError(f"{place} has no {kind} {shown(name)}; recomp.json says it has")
            if found[name] != _TYPES[dtype]:
                raise BundleError(
                    f"{place}: its {kind} {name} is a {one_line(found[name])}; expected {dtype}"
                )


def run_error(path: Path, error: Exception) -> BundleError:
    """The error for a graph that fails when it is run. The runtime has an exception class for each
    status, and its messages have many lines."""
    return BundleError(f"{path} does not run on these inputs: {one_line(error, _LONGEST)}")


def _openvino(threads: int | None, precision: str | None) -> dict[str, str]:
    """OpenVINO's options. Without them it uses half the cores, and takes a third more time for the
    same INT8 graph."""
    hints = {
        "INFERENCE_PRECISION_HINT": _OPENVINO_HINTS[precision or "fp32"],
        "INFERENCE_NUM_THREADS": str(threads or os.cpu_count()),
    }
    return {
        "device_type": "CPU",
        "num_of_threads": hints["INFERENCE_NUM_THREADS"],
        "load_config": json.dumps({"CPU": hints}),
    }


def over_array(array: Any) -> Any:
    """A value of the runtime whose memory is that of a contiguous numpy array on the CPU."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
