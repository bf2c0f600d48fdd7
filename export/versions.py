"""The versions of packages that are installed under more than one name."""

from __future__ import annotations

from importlib import import_module, metadata

NAMES = {
    "paddle": ("paddlepaddle", "paddlepaddle-gpu"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
}
"""The distributions that bring a module, where they are more than one."""


def version_of(module: str) -> str:
    """The version of the distribution that a module came with; of one that was built here, the
    module's own word for it.

    Raises: ModuleNotFoundError when it is not installed."""
    for name in NAMES.get(module, (module,)):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return str(import_module(module).__version__)
