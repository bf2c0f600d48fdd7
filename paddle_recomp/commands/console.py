"""How every command behaves: an error is one line, long work shows a bar, warnings are lines."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from paddle_recomp.errors import RecompError, RecompWarning

# Typer brings its own copy of click and exports of its errors only this subclass.
_UsageError: Any = typer.BadParameter.__base__


def run_app(command: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> int:
    """Runs a command; every expected error is one line on stderr and exit code 2."""
    try:
        result = command(args=arguments, prog_name=name, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except _UsageError as error:
        return _refuse(name, f"{error.format_message()} (see `{name} --help`)")
    except RecompError as error:
        return _refuse(name, str(error))
    except (typer.Abort, KeyboardInterrupt):
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def _refuse(name: str, message: str) -> int:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return 2


@contextmanager
def loading_bar(console: Console, name: str) -> Iterator[Any]:
    """A progress bar over the bytes of a checkpoint, once loading takes longer than a second."""
    bar = Progress(
        TextColumn(f"loading {name}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    start, task = time.monotonic(), bar.add_task("", total=None)

    def on_progress(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        late = time.monotonic() - start > 1
        if late and console.is_terminal and not bar.live.is_started:
            bar.start()

    try:
        yield on_progress
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def measuring_bar(console: Console) -> Iterator[Any]:
    """A progress bar over the answers of a measurement."""
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def warnings_as_lines() -> Iterator[list[str]]:
    """Our own warnings become one line each on stderr; those of libraries are not the user's."""
    messages: list[str] = []

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, RecompWarning):
            messages.append(str(message))
            print(f"recomp: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RecompWarning)
        warnings.showwarning = show
        yield messages


@contextmanager
def quiet_paddle() -> Iterator[None]:
    """paddle and paddlenlp log their start-up; an answer should stand alone."""
    os.environ.setdefault("GLOG_minloglevel", "2")
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
