"""The runtimes of a model, with every default filled in: for its reports, and for whatever
recognises it again."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from typing import Literal

from paddle_recomp.bundle import Bundle
from paddle_recomp.checkpoint import Checkpoint

RuntimeName = Literal["eager Paddle", "PaddleNLP", "Paddle Inference", "ONNX Runtime"]
BACKENDS: dict[str, RuntimeName] = {"onnx": "ONNX Runtime", "paddle": "Paddle Inference"}
"""The runtimes of a bundle, the default first."""

_MODULES: dict[RuntimeName, tuple[str, ...]] = {
    "eager Paddle": ("paddle",),
    "PaddleNLP": ("paddle", "paddlenlp"),
    "Paddle Inference": ("paddle",),
    "ONNX Runtime": ("onnxruntime",),
}


@dataclass(frozen=True)
class Runtime:
    """Where and how a part of a model runs. Two ways to ask for the same are equal."""

    name: RuntimeName
    device: str
    precision: str


def runtimes(
    model: Checkpoint | Bundle,
    device: str = "cpu",
    backend: str | None = None,
    precision: str | None = None,
    own_decoder: bool = True,
) -> tuple[Runtime, Runtime]:
    """The runtimes of the visual encoder and of the language model, for the arguments of
    `loading.load`. `own_decoder`: whether a bundle answers with its own, and not with the language
    model of a checkpoint."""
    if isinstance(model, Checkpoint):
        place = _paddle_device(device)
        # As PaddleLlama and EagerBackend compute.
        half = "fp32" if place == "cpu" else "fp16"
        return Runtime("eager Paddle", place, "fp32"), Runtime("PaddleNLP", place, half)
    name = BACKENDS[backend or next(iter(BACKENDS))]
    paddle = name == "Paddle Inference"
    chosen = paddle or device == "openvino"
    encoder = Runtime(
        name,
        _paddle_device(device) if paddle else device,
        precision or ("fp32" if chosen else model.precision),
    )
    if not own_decoder or model.decoder is None:
        return encoder, Runtime("PaddleNLP", "cpu", "fp32")
    return encoder, Runtime("ONNX Runtime", decoder_provider(device), model.decoder.precision)


def decoder_provider(device: str) -> str:
    """The execution provider of a bundle's decoder: Paddle's devices are none, and OpenVINO knows
    few of the decoder's operators."""
    return "cpu" if device.startswith("gpu") or device == "openvino" else device


def versions(*used: Runtime) -> dict[str, str]:
    """The versions of Python and of the packages that these runtimes have loaded."""
    names = {name for one in used for name in _MODULES[one.name]} & sys.modules.keys()
    return {
        "python": platform.python_version(),
        **{name: str(sys.modules[name].__version__) for name in sorted(names)},
    }


def _paddle_device(device: str) -> str:
    return "gpu:0" if device == "gpu" else device
