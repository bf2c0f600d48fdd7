"""The tools of an export, which are a package of their own: the library never imports it, but finds
it by the entry points of installed packages, and loads it when a command needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, Literal

import typer

from paddle_recomp.commands.console import quiet_paddle
from paddle_recomp.errors import MissingDependencyError

GROUP = "paddle_recomp.export"
"""The group of entry points. `export` names a function of the arguments and of the command's name,
which returns an exit code; `verify` names a function that compares a bundle with its checkpoint."""
REMEDY = "pip install 'paddle-recomp[paddle,export]'"
_PACKAGES = ("paddle", "paddlepaddle", "paddle2onnx", "onnx", "onnxruntime")


def find_tool(name: Literal["export", "verify"]) -> Any:
    """The function that an entry point of GROUP names.

    Raises: MissingDependencyError when there is none, or when it does not import."""
    with export_required(), quiet_paddle():
        for point in entry_points(group=GROUP, name=name):
            return point.load()
    raise MissingDependencyError(
        f"the tools of an export are not installed: {REMEDY}; in a checkout, python -m export"
    )


@contextmanager
def export_required() -> Iterator[None]:
    """Turns the error about a missing package into one line that names the extras.

    Raises: MissingDependencyError."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _PACKAGES:
            raise
        raise MissingDependencyError(
            f"an export needs {package}, which is not installed: {REMEDY}"
        ) from error


def export(context: typer.Context) -> int:
    """Write the bundle of a checkpoint. Needs the extras paddle and export."""
    code: int = find_tool("export")(context.args, "recomp export")
    return code


FORWARDED = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
"""How `export` is registered, so that all its options reach the tool, `--help` among them."""
