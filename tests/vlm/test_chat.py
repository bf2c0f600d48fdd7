"""`recomp chat`: what lines mean, what a session does with them, and where they come from."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from paddle_recomp.commands.chat.commands import (
    COMMANDS,
    Command,
    describe_budget,
    parse_budget,
    parse_line,
)
from paddle_recomp.commands.chat.session import ChatSession
from paddle_recomp.commands.chat.terminal import LineCompleter, ctrl_c, edited_lines, open_history
from paddle_recomp.commands.main import main
from paddle_recomp.commands.printing import PlainConsole
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import ConfigError, ImageNotFoundError
from paddle_recomp.vlm.demo import DemoQuestion, demo_pictures
from paddle_recomp.vlm.feature_cache import FeatureCache
from paddle_recomp.vlm.loading import load
from paddle_recomp.vlm.vlm import VLM

ASKED: list[list[DemoQuestion]] = list(demo_pictures().values())
FIRST, SECOND = ASKED[0][:2]


class Scripted:
    """A session, and what it printed for each line."""

    def __init__(
        self, vlm: VLM, *images: Path, budget: TokenBudget | None = None, longest: int = 8
    ) -> None:
        self.printed = io.StringIO()
        console = PlainConsole(file=self.printed)
        generation = GenerationConfig(max_new_tokens=longest)
        self.session = ChatSession(vlm, console, images, budget=budget, generation=generation)
        self.goes_on = True

    def __call__(self, line: str) -> list[str]:
        start = self.printed.tell()
        self.goes_on = self.session.take(line)
        return self.printed.getvalue()[start:].splitlines()


@pytest.fixture(scope="module")
def bundle() -> VLM:
    return load("demo", cache=FeatureCache())


@pytest.fixture
def says(bundle: VLM) -> Scripted:
    return Scripted(bundle, FIRST.picture, budget=TokenBudget(full=True))


def test_a_time_is_measured_before_a_question_needs_it(bundle: VLM, tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    vlm = VLM(bundle.front_end, bundle.answerer, file)
    says = Scripted(vlm, FIRST.picture)
    assert not file.exists()
    assert says("/tokens 9000 ms") == ["tokens: 9000 ms"]
    assert file.exists()
    assert "256 of 256" in says(FIRST.question)[1]

    file = tmp_path / "another.json"
    vlm = VLM(bundle.front_end, bundle.answerer, file)
    Scripted(vlm, budget=TokenBudget(ttft_ms=9000))
    assert file.exists()


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("  what is /this?\n", "what is /this?"),
        ("", ""),
        ("/quit ", Command("/quit")),
        ("/image a.jpg 'b c.jpg' d\\ e.jpg", Command("/image", ("a.jpg", "b c.jpg", "d e.jpg"))),
    ],
)
def test_what_a_line_means(line: str, meant: object) -> None:
    assert parse_line(line) == meant


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/imag a.jpg", "unknown command /imag; known: /image, /tokens, "),
        ("/", "unknown command /;"),
        ("/image 'a.jpg", "no closing quotation"),
        ("/new please", "/new takes no words; found please"),
    ],
)
def test_lines_that_mean_nothing(line: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse_line(line)


BUDGETS = {
    "32": TokenBudget(tokens=32),
    "12.5%": TokenBudget(ratio=0.125),
    "max 64": TokenBudget(max_tokens=64),
    "250 ms": TokenBudget(ttft_ms=250),
    "250 ms max 64": TokenBudget(ttft_ms=250, max_tokens=64),
    "full": TokenBudget(full=True),
    "auto": TokenBudget(),
}


@pytest.mark.parametrize("text", BUDGETS)
def test_budgets(text: str) -> None:
    assert parse_budget(tuple(text.split())) == BUDGETS[text]
    assert describe_budget(BUDGETS[text]) == text


@pytest.mark.parametrize(
    "text", ["0 ms", "0", "-3", "1.5", "many", "max", "max x", "0%", "130%", "%", "8 9", "9 ms max"]
)
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        parse_budget(tuple(text.split()))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_line_is_a_question_a_command_or_an_error(line: str) -> None:
    try:
        meant = parse_line(line)
    except ConfigError:
        assert line.strip().startswith("/")
    else:
        assert meant == line.strip() or (isinstance(meant, Command) and meant.name in COMMANDS)


def test_a_question_is_answered_with_what_it_cost(says: Scripted) -> None:
    for asked in (FIRST, SECOND):
        answer, tokens, times = says(asked.question)
        assert answer == asked.expected
        assert tokens == "256 of 256 visual tokens: no compression"
        positions = re.search(r"vision tower .*first token .* ms, (\d+) positions prefilled", times)
        assert positions is not None
        assert (int(positions[1]) > 256) == (asked is FIRST), "the KV cache stays"
    assert says("  ") == []
    lines = says("/history")
    assert [lines[0], lines[1], lines[4], lines[5]] == [
        f"> {FIRST.question}",
        FIRST.expected,
        f"> {SECOND.question}",
        SECOND.expected,
    ]
    assert (lines[6], lines[7]) == (tokens, times)


def test_an_answer_that_was_cut_says_so(bundle: VLM) -> None:
    says = Scripted(bundle, FIRST.picture, longest=1)
    assert says(FIRST.question)[1] == "cut at the longest answer: --max-new-tokens 1"


def test_another_picture_is_another_conversation(says: Scripted, tmp_path: Path) -> None:
    (asked, *_) = ASKED[1]
    path = tmp_path / "a picture.png"
    Image.open(asked.picture).save(path)
    says(FIRST.question)
    (line,) = says(f"/image '{path}'")
    assert line.startswith(f"{path}: 224×224 pixels, 256 patches, seen in ")
    assert says("/history") == []
    assert says(asked.question)[0] == asked.expected
    assert len(says(f"/image {FIRST.picture} {asked.picture}")) == 2
    assert says("/new") == []
    assert says(FIRST.question)[1] == "512 of 512 visual tokens: no compression"


def test_a_picture_seen_before_costs_nothing(says: Scripted, bundle: VLM) -> None:
    says(f"/image {ASKED[1][0].picture}")
    backend = bundle.front_end.backend
    runs = backend.backend  # type: ignore[attr-defined]
    backend.backend = None  # type: ignore[attr-defined]
    try:
        assert len(says(f"/image {FIRST.picture}")) == 1
    finally:
        backend.backend = runs  # type: ignore[attr-defined]


def test_tokens_and_mode(says: Scripted) -> None:
    assert says("/tokens") == ["tokens: full"]
    assert says("/tokens 12.5%") == ["tokens: 12.5%"]
    assert says(FIRST.question)[1].startswith("32 of 256 visual tokens: ")
    assert says("/mode") == ["mode: append"]
    assert says("/mode recompress") == ["mode: recompress"]
    assert says("/history") == []
    prefilled = [says(one.question)[2].split(", ")[-1] for one in (FIRST, FIRST)]
    assert int(prefilled[1].split()[0]) > int(prefilled[0].split()[0]) > 32


def test_explain(says: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert says("/explain") == ["there is no answer to explain yet"]
    says(FIRST.question)
    for line, name in (("/explain", "explain.png"), ("/explain 'the why.png'", "the why.png")):
        assert says(line) == [name]
        with Image.open(tmp_path / name) as drawn:
            assert drawn.width >= 800
    (line,) = says("/explain no/where.png")
    assert "there is no folder" in line


@pytest.mark.parametrize(
    ("line", "says_so"),
    [
        ("/image {bad}/missing.png", "no picture at"),
        ("/image {bad}/text.png", "not a picture"),
        ("/image {ok} {bad}/text.png", "not a picture"),
        ("/image", "/image PATH"),
        ("/image 'a", "no closing quotation"),
        ("/tokens 300", "tokens: 300"),
        ("/tokens lots", "expected N | 12.5%"),
        ("/mode forget", "known: recompress, append, keep"),
        ("/explain a b", "one file"),
        ("/frobnicate", "known: /image"),
        ("where is <image>?", "<image>"),
        ("red " * 2500, "context is 2048"),
    ],
)
@pytest.mark.filterwarnings("ignore:the question is longer")
def test_what_cannot_be_done_is_one_line_and_the_session_stays(
    line: str, says_so: str, says: Scripted, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("not an image")
    says(FIRST.question)
    (printed,) = says(line.format(bad=tmp_path, ok=FIRST.picture))
    assert says_so in printed
    if line == "/tokens 300":
        (printed,) = says(SECOND.question)
        assert "256 patches" in printed
        says("/tokens full")
    assert says.goes_on
    assert says(SECOND.question)[0] == SECOND.expected
    assert len(says("/history")) == 8


def test_a_chat_without_a_picture(bundle: VLM) -> None:
    says = Scripted(bundle)
    assert says("what is it?")[1] == "no picture"
    assert says("/explain") == ["the conversation has no picture to explain"]
    with pytest.raises(ImageNotFoundError):
        Scripted(bundle, Path("missing.png"))


def test_help_and_quit(says: Scripted) -> None:
    printed = says("/help")
    assert [line.split()[0] for line in printed[:-1]] == list(COMMANDS)
    assert says.goes_on
    assert says("/quit") == []
    assert not says.goes_on


class Interrupting(io.StringIO):
    """A terminal on which somebody presses Ctrl-C when text comes."""

    def __init__(self) -> None:
        super().__init__()
        self.presses = 0

    def write(self, text: str) -> int:
        while self.presses and text.strip():
            self.presses -= 1
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_cuts_the_answer_and_the_session_goes_on(presses: int, bundle: VLM) -> None:
    """Twice, it is an interrupt wherever the program is."""
    file = Interrupting()
    long = GenerationConfig(max_new_tokens=40, temperature=9.0, top_k=500, seed=1)
    session = ChatSession(bundle, PlainConsole(file=file), [FIRST.picture], generation=long)
    assert not session.cancel()
    file.presses = presses
    with ctrl_c(session.cancel):
        if presses == 1:
            assert session.take(FIRST.question)
        else:
            with pytest.raises(KeyboardInterrupt):
                session.take(FIRST.question)
    if presses == 1:
        assert file.getvalue().splitlines()[-1] == "interrupted: this question was never asked"
    assert not session.cancel()
    before = len(file.getvalue())
    session.take("/history")
    assert len(file.getvalue()) == before
    session.take(FIRST.question)
    assert "positions prefilled" in file.getvalue()[before:]


def test_ctrl_c_where_nothing_can_be_cut() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), ctrl_c(lambda: False):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """The lines that come of keys."""
    monkeypatch.setattr("platformdirs.user_state_path", lambda name: tmp_path / name)

    def lines(keys: str) -> list[str]:
        with create_pipe_input() as keyboard:
            keyboard.send_text(keys)
            with create_app_session(input=keyboard, output=DummyOutput()):
                return list(edited_lines())

    return lines


def test_typed_lines_are_remembered(typed: Callable[[str], list[str]], tmp_path: Path) -> None:
    up, ctrl_c, ctrl_d = "\x1b[A", "\x03", "\x04"
    assert typed(f"first\rclea{ctrl_c}second\r{ctrl_d}") == ["first", "second"]
    assert typed(f"{up}{up}\r{ctrl_d}") == ["first"]
    history = tmp_path / "paddle_recomp" / "chat_history"
    assert history.stat().st_mode & 0o077 == 0
    assert isinstance(open_history(history), FileHistory)
    assert isinstance(open_history(history / "below"), InMemoryHistory)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/mo", ["/mode"]),
        ("/mode re", ["/mode recompress"]),
        ("/tokens f", ["/tokens full"]),
        ("/image {tmp}/on", ["/image {tmp}/one.png"]),
        ("/image {tmp}/one.png {tmp}/tw", [r"/image {tmp}/one.png {tmp}/two\ dogs.png"]),
        (r"/image {tmp}/two\ d", [r"/image {tmp}/two\ dogs.png"]),
        ("/image '{tmp}/two d", ["/image '{tmp}/two dogs.png"]),
        ("/image 'a b.png' \"c d\" {tmp}/on", ["/image 'a b.png' \"c d\" {tmp}/one.png"]),
        ("/explain {tmp}/o", ["/explain {tmp}/one.png"]),
        ("what is {tmp}/o", []),
        ("", []),
    ],
)
def test_completion(line: str, expected: list[str], tmp_path: Path) -> None:
    for name in ("one.png", "two dogs.png"):
        (tmp_path / name).touch()
    text = line.format(tmp=tmp_path)
    found = LineCompleter().get_completions(Document(text), CompleteEvent(True))
    whole = [text[: len(text) + one.start_position] + one.text for one in found]
    assert whole == [one.format(tmp=tmp_path) for one in expected]


def test_lines_of_a_pipe_and_a_folder_that_remembers(tmp_path: Path) -> None:
    """In a process of its own, with bytes that are no text among the lines."""
    lines = f"{FIRST.question}\n\xff\n/image 'no where.png'\n{SECOND.question}\n/quit\nunheard\n"
    command = [
        sys.executable,
        "-m",
        "paddle_recomp.commands.main",
        "chat",
        str(FIRST.picture),
        "--full",
    ]
    command += ["--cache", str(tmp_path)]
    done = subprocess.run(command, input=lines.encode("latin-1"), capture_output=True, check=True)
    printed = done.stdout.decode().splitlines()
    assert [printed[0], printed[-3]] == [FIRST.expected, SECOND.expected]
    assert sum("positions prefilled" in line for line in printed) == 2
    assert sum("no UTF-8" in line for line in printed) == 1
    assert sum("no picture at 'no where.png'" in line for line in printed) == 1
    assert done.stderr == b""
    assert len(list(tmp_path.iterdir())) == 1


def test_a_pipe_s_odd_bytes_and_a_picture_in_the_place_of_questions() -> None:
    """Half a character is no question, and the next line is asked. A picture is no list of
    questions."""
    chat = [sys.executable, "-m", "paddle_recomp.commands.main", "chat"]
    lines = b"caf\xe9?\nwhat color is the 0?\n"
    done = subprocess.run(
        [*chat, str(FIRST.picture)], input=lines, capture_output=True, check=False
    )
    assert done.returncode == 0
    assert b"UTF-8" in done.stdout
    with FIRST.picture.open("rb") as picture:
        done = subprocess.run(
            [*chat, "/dev/stdin"], stdin=picture, capture_output=True, check=False
        )
    assert done.returncode == 2
    assert b"standard input" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_ask_sees_a_file_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        arguments = ["ask", str(FIRST.picture), FIRST.question, "--full", "--cache", str(tmp_path)]
        assert main(arguments) == 0
        assert capsys.readouterr().out.splitlines()[0] == FIRST.expected
    (kept,) = tmp_path.iterdir()
    assert kept.suffix == ".features"


@pytest.mark.parametrize(
    ("arguments", "says_so"),
    [
        (["missing.png"], "missing.png"),
        (["--mode", "forget"], "known: recompress, append, keep"),
        (["--tokens", "0"], "tokens"),
        (["--cache", "/dev/null/cache"], "cannot be a cache"),
        (["--model", "/nowhere"], "nowhere"),
    ],
)
def test_bad_options_are_one_line(
    arguments: list[str], says_so: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says_so in line
