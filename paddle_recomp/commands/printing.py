"""How text that others wrote is printed: users, models, files. Nothing in it is a command to the
terminal or to the library that draws tables: no markup, no emoji codes, no escape sequences.

Every command prints through this file."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from typing import IO, Any

from rich.console import Console
from rich.text import Text

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and newline, what begins a line or turns its direction, and halves
of characters."""
_UNBROKEN = 10_000
"""Columns of what is no terminal, so that no table is wrapped or cut there."""


def escaped(text: str) -> str:
    """The text with everything that could steer a terminal as an escape: `\\x1b`. Tabs, line ends
    and letters of any language stay."""
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


class PlainConsole(Console):
    """A console for lines and tables, in which every string is `escaped` and nothing else than
    itself. Where the output is no terminal, lines are as long as they are."""

    def __init__(self, *, file: IO[str] | None = None, stderr: bool = False) -> None:
        super().__init__(file=file, stderr=stderr, markup=False, emoji=False, highlight=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = _UNBROKEN

    def render_str(self, text: str, **options: Any) -> Text:
        """A string of a line or of a cell; rich calls this."""
        return super().render_str(escaped(text), **options)

    def say(self, line: str, style: str = "") -> None:
        """Prints a line, which a terminal breaks where it ends."""
        self.print(line, style=style, soft_wrap=True)


def write_text(text: str, end: str = "\n", file: IO[str] | None = None) -> None:
    """Writes a text as it is, by default to standard output: to a terminal `escaped`, and anywhere
    else its own bytes in UTF-8, whatever encoding the output has.

    Raises: OSError when it cannot be written."""
    file = file or sys.stdout
    if file is None:  # Python's way to say that it was closed.
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    if file.isatty():
        file.write(escaped(text) + end)
    elif (buffer := getattr(file, "buffer", None)) is not None:
        file.flush()
        buffer.write(_as_bytes(text) + end.encode())
    else:
        file.write(text + end)
    file.flush()


def write_json(content: object) -> None:
    """Writes an object to standard output, in ASCII. Raises: as `write_text`."""
    write_text(json.dumps(content, indent=2))


def _as_bytes(text: str) -> bytes:
    """UTF-8. The bytes of a file's name that were no UTF-8 come back as they were."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")
