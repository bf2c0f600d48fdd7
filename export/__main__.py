"""The command `recomp export`, in a checkout also `python -m export`: writes a bundle from a
checkpoint, and verifies that nothing was lost on the way."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

from paddle_recomp.commands.console import (
    progress_bar,
    quiet_paddle,
    run_app,
    warnings_as_lines,
)
from paddle_recomp.commands.export_tools import export_required
from paddle_recomp.commands.options import with_options
from paddle_recomp.commands.printing import PlainConsole
from paddle_recomp.commands.verify import add_verify
from paddle_recomp.files import is_file

from .options import ExportOptions


def run(arguments: Sequence[str], name: str) -> int:
    """The command alone, by the name that its errors begin with; see `run_app`."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(export)
    return run_app(app, name, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m export` and `python -m export verify`; see `run_app`."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.callback(invoke_without_command=True)(export_unless_verify)
    add_verify(app, _load_verify)
    return run_app(app, "export", arguments)


@with_options
def export(options: ExportOptions) -> None:
    """Write the bundle of a checkpoint: graphs for ONNX Runtime, with all that runs them."""
    _write(options)


@with_options
def export_unless_verify(context: typer.Context, options: ExportOptions) -> None:
    """Write the bundle of a checkpoint: graphs for ONNX Runtime, with all that runs them."""
    if context.invoked_subcommand is None:
        _write(options)


def _write(options: ExportOptions) -> None:
    folder, console = options.folder, PlainConsole()
    with export_required(), quiet_paddle(), warnings_as_lines():
        from .accuracy import print_ranking, write_ranking
        from .build import export as write_bundle

        plan = options.build()
        with progress_bar(PlainConsole(stderr=True), "reading") as on_step:
            made = write_bundle(plan, folder, on_step)
        if options.report is not None and made.outcome is not None:
            print_ranking(console, made.outcome)
            write_ranking(options.report, made.outcome)
    bundle = made.bundle
    sizes = [path.stat().st_size for path in folder.rglob("*") if is_file(path)]
    console.say(f"{folder}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB, {bundle.precision}")


def _load_verify() -> Any:
    from .verify import verify_bundle

    return verify_bundle


if __name__ == "__main__":
    sys.exit(main())
