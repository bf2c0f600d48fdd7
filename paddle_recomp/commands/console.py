"""How every command behaves: an error is one line, long work shows a bar, warnings are lines."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TextIO

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

from paddle_recomp.commands.printing import escaped
from paddle_recomp.errors import RecompError, RecompWarning

# Typer has its own copy of click, and exports only this subclass of click's errors.
_UsageError: Any = typer.BadParameter.__base__


_READER_GONE = 141
"""128 + SIGPIPE: the exit code of any tool whose reader has gone, as a shell shows it."""
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""Errors of writing to a file that is open already, as standard output is."""


def run_app(command: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> int:
    """Runs a command; every expected error is one line on stderr and exit code 2. So is standard
    output that cannot be written; but where its reader has gone, the command ends without a
    word."""
    streams = sys.stdout, sys.stderr
    try:
        with _any_letters():
            result = command(args=arguments, prog_name=name, standalone_mode=False)
            if sys.stdout is not None:
                sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except _UsageError as error:
        return _refuse(name, f"{error.format_message()} (see `{name} --help`)")
    except RecompError as error:
        return _refuse(name, str(error))
    except (typer.Abort, KeyboardInterrupt):
        _complain(f"{name}: interrupted")
        return 130
    except (SystemExit, BrokenPipeError):  # Typer makes the one of the other.
        sys.stdout, sys.stderr = streams
        _forget(*streams)
        return _READER_GONE
    except OSError as error:
        if error.filename is not None or error.errno not in _UNWRITABLE:
            raise
        _forget(sys.stdout)
        return _refuse(name, f"the output cannot be written: {error.strerror}")


def _refuse(name: str, message: str) -> int:
    _complain(f"{name}: {' '.join(message.split())}")
    return 2


def _complain(line: str) -> None:
    """Prints a line on stderr, if there is one that can be written."""
    if sys.stderr is None:  # `print` would take stdout.
        return
    try:
        print(escaped(line), file=sys.stderr, flush=True)
    except OSError:
        _forget(sys.stderr)


@contextmanager
def _any_letters() -> Iterator[None]:
    """Letters that the encoding of standard output lacks are printed as escapes."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            stream.reconfigure(errors=before)


def _forget(*streams: TextIO | None) -> None:
    """Sends what comes to these streams nowhere. Python writes the rest of its buffers when it
    ends, and would complain once more."""
    for stream in streams:
        with suppress(OSError, ValueError):
            if stream is not None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
    start, task = time.monotonic(), bar.add_task(escaped(title), total=None)

    def show() -> None:
        late = time.monotonic() - start >= delay
        if late and console.is_terminal and not bar.live.is_started:
            bar.start()

    def on_progress(done: int, total: int, title: str | None = None) -> None:
        words = None if title is None else escaped(title)
        bar.update(task, description=words, completed=done, total=total)
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
            _complain(f"recomp: warning: {' '.join(str(message).split())}")

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
