"""Where the lines of a chat come from: an edited line with history and completion on a terminal,
plain lines from anywhere else. Also the handling of Ctrl-C."""

from __future__ import annotations

import io
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import get_args

import platformdirs
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from paddle_recomp.commands.chat.commands import COMMANDS
from paddle_recomp.commands.chat.session import ChatSession
from paddle_recomp.vlm.conversation import Mode

PROMPT = "> "
_WORDS = {"/mode": get_args(Mode), "/tokens": ("auto", "full", "max")}
_WHOLE_WORDS = re.compile(r"""(?:(?:[^\s"'\\]|\\.|"[^"]*"|'[^']*')*\s+)*""")
"""Everything in front of the last word of an unfinished line."""


def run(session: ChatSession) -> None:
    """Passes the lines of standard input to a session until either ends."""
    for line in edited_lines() if sys.stdin.isatty() else plain_lines():
        with ctrl_c(session.cancel):
            try:
                if not session.take(line):
                    return
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)


def plain_lines() -> Iterator[str]:
    """The lines of standard input. Bytes that are no UTF-8 stay what they are, so that the name of
    a picture may have them, and a question with them is refused."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    yield from sys.stdin


def is_standard_input(path: Path) -> bool:
    """Whether lines are read from this file."""
    try:
        return path.samefile(f"/dev/fd/{sys.stdin.fileno()}")
    except (OSError, ValueError):  # It is no file, or there is none.
        return False


def edited_lines() -> Iterator[str]:
    """The typed lines; Ctrl-C clears the line, Ctrl-D ends."""
    prompt: PromptSession[str] = PromptSession(
        PROMPT,
        history=open_history(platformdirs.user_state_path("paddle_recomp") / "chat_history"),
        completer=LineCompleter(),
        placeholder=[("fg:ansibrightblack", "a question, or /help")],
        complete_while_typing=False,
    )
    while True:
        try:
            line = prompt.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        yield line


def open_history(path: Path) -> History:
    """The lines of earlier sessions, or only those of this session when the file cannot be
    written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("ab"):
            return FileHistory(path)
    except OSError:
        return InMemoryHistory()


class LineCompleter(Completer):
    """Completes commands, their words, and the last path of `/image` and `/explain`."""

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """The completions of the line so far."""
        line = document.text_before_cursor
        name, space, rest = line.partition(" ")
        if not space:
            names = (one for one in COMMANDS if line and one.startswith(line))
            yield from (Completion(one, -len(line)) for one in names)
        elif name in _WORDS:
            words = (one for one in _WORDS[name] if one.startswith(rest))
            yield from (Completion(one, -len(rest)) for one in words)
        elif name in ("/image", "/explain"):
            yield from _paths(rest, event)


def _paths(line: str, event: CompleteEvent) -> Iterator[Completion]:
    """The rest of the path that a line ends with, written as a shell reads it."""
    word = _WHOLE_WORDS.sub("", line, count=1)
    quoted = word[:1] in ("'", '"')
    begun = word[1:] if quoted else re.sub(r"\\(.)", r"\1", word)
    for one in PathCompleter(expanduser=True).get_completions(Document(begun), event):
        text = one.text if quoted else re.sub(r"([\s\"'\\])", r"\\\1", one.text)
        yield Completion(text, one.start_position, display=one.display)


@contextmanager
def ctrl_c(cancel: Callable[[], bool]) -> Iterator[None]:
    """Within the block, Ctrl-C cuts an answer; if there is none to cut, it is a
    KeyboardInterrupt."""

    def handle(number: int, frame: FrameType | None) -> None:
        if not cancel():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
