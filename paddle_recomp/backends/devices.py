"""Paddle devices by name."""

from __future__ import annotations

import re

import paddle

from paddle_recomp.errors import DeviceError
from paddle_recomp.types import Tensor


def available_devices() -> list[str]:
    """Names of the devices that this Paddle build can use on this machine."""
    count = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    return ["cpu", *(f"gpu:{i}" for i in range(count))]


def place(device: str) -> Tensor:
    """The Paddle place of `cpu`, `gpu` (the first one) or `gpu:N`.

    Raises: DeviceError listing the devices of this machine."""
    available = available_devices()
    name = "gpu:0" if device == "gpu" else device
    if not re.fullmatch(r"cpu|gpu:\d+", name) or name not in available:
        raise DeviceError(f"no device {device!r} here; available: {', '.join(available)}")
    return paddle.CPUPlace() if name == "cpu" else paddle.CUDAPlace(int(name.split(":")[1]))
