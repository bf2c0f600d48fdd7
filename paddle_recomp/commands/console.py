"""How every command behaves: an error is one line, long work shows a bar, warnings are lines."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

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

# Typer has its own copy of click, and exports only this subclass of click's errors.
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


class OnProgress(Protocol):
    """Long work reports to it: the amount done, the whole amount, and a name for the current
    step."""

    def __call__(self, done: int, total: int, title: str | None = None) -> None:
        """With `title` None the words stay the same."""
        ...


@contextmanager
def progress_bar(
    console: Console, title: str, *, of_bytes: bool = False, delay: float = 0.0
) -> Iterator[OnProgress]:
    """A progress bar on a terminal, which disappears when the block ends. It appears with the first
    report after `delay` seconds, so that short work shows no bar."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn() if of_bytes else MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=console, transient=True)
    start, task = time.monotonic(), bar.add_task(title, total=None)

    def show() -> None:
        late = time.monotonic() - start >= delay
        if late and console.is_terminal and not bar.live.is_started:
            bar.start()

    def on_progress(done: int, total: int, title: str | None = None) -> None:
        bar.update(task, description=title, completed=done, total=total)
        show()

    show()
    try:
        yield on_progress
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def warnings_as_lines() -> Iterator[list[str]]:
    """Prints each of our own warnings as one line on stderr, and hides those of libraries."""
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
    """Hides the lines that paddle and paddlenlp log when they start, so that an answer stands
    alone."""
    os.environ.setdefault("GLOG_minloglevel", "2")
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
