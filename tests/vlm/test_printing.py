"""Text of users, models and files is printed as it is, whatever reads it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from paddle_recomp.commands.chat.session import ChatSession
from paddle_recomp.commands.main import main
from paddle_recomp.commands.printing import PlainConsole, escaped, write_text
from paddle_recomp.vlm.demo import demo_pictures
from paddle_recomp.vlm.loading import load
from paddle_recomp.vlm.vlm import VLM
from tests.vlm.saying import saying

PICTURE = next(iter(demo_pictures()))
QUESTION = "what shape is purple?"
NASTY = (
    "1:100:5 [red]x[/red] [/] \x1b[31mred\x07\r\b\x9b2J café 日本 :smile:\n\tnext " + "long " * 40
)
SHOWN = NASTY.replace("\x1b", r"\x1b").replace("\x07", r"\x07").replace("\r", r"\r")
SHOWN = SHOWN.replace("\b", r"\x08").replace("\x9b", r"\x9b")
PIECES = [NASTY[start : start + 7] for start in range(0, len(NASTY), 7)]


class Terminal(io.StringIO):
    """Somebody looks at it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def bundle() -> VLM:
    return load("demo")


@pytest.fixture
def ask(bundle: VLM, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`recomp ask`, of a model that answers with NASTY."""
    speaker, generation = saying(bundle, *PIECES)
    monkeypatch.setattr("paddle_recomp.vlm.loading.load", lambda *given: speaker)
    length = ["--max-new-tokens", str(generation.max_new_tokens)]

    def run(*options: str) -> int:
        return main(["ask", str(PICTURE), QUESTION, *length, *options])

    return run


def test_a_pipe_gets_the_answers_bytes(
    ask: Callable[..., int], capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert ask() == 0
    printed = capsysbinary.readouterr()
    assert printed.out == NASTY.strip().encode() + b"\n"
    assert printed.err.decode().splitlines()[1].startswith("70 of 256 visual tokens: ")


def test_a_terminal_is_not_steered(
    ask: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert ask() == 0
    assert terminal.getvalue() == SHOWN.strip() + "\n"


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_chat_shows_answers_as_they_are(kind: type[io.StringIO], bundle: VLM) -> None:
    speaker, generation = saying(bundle, " \n", *PIECES, "  ", "end", " \n")
    file = kind()
    session = ChatSession(speaker, PlainConsole(file=file), [PICTURE], generation=generation)
    session.take("what is [red] at 1:100:5 \x1b[2J?")
    answer = f"{SHOWN if kind is Terminal else NASTY}  end\n"
    assert answer in file.getvalue()
    asked = file.tell()
    session.take("/history")
    history = file.getvalue()[asked:]
    assert answer in history
    assert r"> what is [red] at 1:100:5 \x1b[2J?" in history


def test_lines_and_cells_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # Which would be obeyed.
    file = io.StringIO()
    console = PlainConsole(file=file)
    console.say("[red]:smile: \x1b[31m " + "long " * 40)
    table = Table("[b]title", box=None)
    table.add_row("1:100:5 [red]x \x9b2J " + "y" * 200)
    console.print(table)
    first, title, row = file.getvalue().splitlines()
    assert first == r"[red]:smile: \x1b[31m " + "long " * 40
    assert title.strip() == "[b]title"
    assert row.strip() == r"1:100:5 [red]x \x9b2J " + "y" * 200


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc é 日本 👍🏽 \u200d \xa0", "a\tb\nc é 日本 👍🏽 \u200d \xa0"),
        ("\x00\x1b\x7f\x85\x9b\r", r"\x00\x1b\x7f\x85\x9b\r"),
        ("\u202eabc\u2066\u2028", r"\u202eabc\u2066\u2028"),
        ("\udcff\ud800", r"\udcff\ud800"),
    ],
)
def test_what_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_bytes_of_a_name_come_back() -> None:
    binary = io.BytesIO()
    file = io.TextIOWrapper(binary, encoding="ascii")
    write_text(os.fsdecode(b"caf\xe9 \xc3\xa9.png"), file=file)
    write_text("\ud800", file=file)
    assert binary.getvalue() == b"caf\xe9 \xc3\xa9.png\n\\ud800\n"


def run(*arguments: str | bytes, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "paddle_recomp.commands.main", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, **options)


@pytest.mark.parametrize("encoding", ["ascii", "utf-16"])
def test_any_encoding_of_the_output(encoding: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    picture = tmp_path / "bild-ä.png"
    done = run(
        "explain", str(PICTURE), QUESTION, "-o", str(picture), env=environment, capture_output=True
    )
    assert (done.returncode, done.stdout) == (0, f"{picture}\n".encode())
    done = run("info", env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


WAYS = [(["--help"], "1"), (["--version"], ""), (["methods", "--json"], "1"), (["info"], "")]
"""Commands by each way to print, with what PYTHONUNBUFFERED is."""


@pytest.mark.parametrize(("arguments", "unbuffered"), WAYS)
def test_output_that_cannot_be_written_is_one_line(arguments: list[str], unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = run(*arguments, stdout=full, stderr=subprocess.PIPE, env=environment)
    said = b"recomp: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.parametrize(("arguments", "unbuffered"), WAYS)
def test_a_reader_that_has_gone_is_no_error(arguments: list[str], unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    reading, writing = os.pipe()
    os.close(reading)
    done = run(*arguments, stdout=writing, stderr=subprocess.PIPE, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_without_output_at_all() -> None:
    command = f"{sys.executable} -m paddle_recomp.commands.main"
    for redirected, code in (
        ("--version >&-", 2),
        ("nonsense 2>&-", 2),
        ("methods 2>/dev/full", 0),
    ):
        done = subprocess.run(["bash", "-c", f"{command} {redirected}"], capture_output=True)
        assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\x1b[31m.png"
    os.symlink(PICTURE, name)
    for arguments in ([b"ask", name, b"what \xff?"], [b"ask", name + b"x", b"what?"], [b"ask\x1b"]):
        done = run(*arguments, capture_output=True)
        assert done.returncode == 2
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith("recomp: ")
        assert "\x1b" not in line
    done = run(b"ask", name, QUESTION, b"--json", capture_output=True, check=True)
    assert rb"\udcff\u001b[31m.png" in done.stdout
