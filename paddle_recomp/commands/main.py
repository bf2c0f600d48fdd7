"""The command `recomp`: every command by its name. Each has a file of its own beside this one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from paddle_recomp import __version__
from paddle_recomp.commands.ask import ask
from paddle_recomp.commands.bench.start import bench
from paddle_recomp.commands.chat.start import chat
from paddle_recomp.commands.console import run_app
from paddle_recomp.commands.demo import demo
from paddle_recomp.commands.explain import explain
from paddle_recomp.commands.export_tools import FORWARDED, export, find_tool
from paddle_recomp.commands.info import info
from paddle_recomp.commands.methods import methods
from paddle_recomp.commands.printing import write_text
from paddle_recomp.commands.verify import add_verify

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Ask a LLaVA-class model about a picture with the visual tokens that matter.",
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Ask a LLaVA-class model about a picture with the visual tokens that matter."""
    if version:
        write_text(__version__)
    elif context.invoked_subcommand is None:
        write_text(context.get_help())


for command in (ask, chat, explain, info, methods, demo, bench):
    app.command()(command)
app.command(context_settings=FORWARDED)(export)
add_verify(app, lambda: find_tool("verify"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command `recomp`; see `run_app`."""
    return run_app(app, "recomp", arguments)


if __name__ == "__main__":
    sys.exit(main())
