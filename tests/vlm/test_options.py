"""Options that commands share are declared once, and mean the same in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from rich.console import Console

from paddle_recomp.commands.ask import ask
from paddle_recomp.commands.chat.start import chat
from paddle_recomp.commands.console import progress_bar, run_app
from paddle_recomp.commands.options import AnswerOptions, GenerationOptions, with_options
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import ConfigError


def options_of(command: Any) -> dict[str, Any]:
    """Name -> what typer is told, without the parameters that are arguments."""
    app = typer.Typer()
    app.command()(command)
    return {
        item.name: (item.opts, item.default, getattr(item, "help", None))
        for item in typer.main.get_command(app).params
    }


def test_ask_and_chat_share_their_options() -> None:
    asked, talked = options_of(ask), options_of(chat)
    assert asked.keys() - talked.keys() == {"question", "overlay", "as_json"}
    assert talked.keys() - asked.keys() == {"mode"}
    shared = asked.keys() & talked.keys()
    assert len(shared) > 20
    assert {name: asked[name] for name in shared} == {name: talked[name] for name in shared}


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: Annotated[int, typer.Option("--size")] = 3
    names: Annotated[list[str] | None, typer.Option("--name")] = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    loud: Annotated[bool, typer.Option("--loud")] = False
    inner: Inner


def test_a_dataclass_stands_for_its_fields() -> None:
    seen: list[Any] = []

    @with_options
    def command(
        word: Annotated[str, typer.Argument()],
        *,
        last: Annotated[int, typer.Option("--last")] = 1,
        outer: Outer,
    ) -> None:
        seen.append((word, last, outer))

    app = typer.Typer()
    app.command()(command)
    assert run_app(app, "try", ["hello", "--size", "5", "--name", "a", "--name", "b"]) == 0
    assert run_app(app, "try", ["hello", "--loud", "--last", "7"]) == 0
    assert seen == [
        ("hello", 1, Outer(inner=Inner(size=5, names=["a", "b"]))),
        ("hello", 7, Outer(loud=True, inner=Inner())),
    ]


def test_options_become_configuration() -> None:
    seen: list[AnswerOptions] = []

    @with_options
    def command(options: AnswerOptions) -> None:
        seen.append(options)

    app = typer.Typer()
    app.command()(command)
    assert run_app(app, "try", []) == 0
    words = ["--max-tokens", "9", "--stop", "a", "--temperature", "1", "--seed", "4", "--set"]
    assert run_app(app, "try", [*words, "members=5"]) == 0
    first, second = seen
    assert first.compression.build() is None
    assert first.budget.build() == TokenBudget()
    assert first.generation.build() == GenerationConfig()
    config = second.compression.build()
    assert config is not None
    assert second.budget.build() == TokenBudget(max_tokens=9)
    assert second.generation.build() == GenerationConfig(temperature=1.0, seed=4, stop=("a",))
    with pytest.raises(ConfigError, match="temperature"):
        GenerationOptions(temperature=-1.0).build()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_shows_what_is_done_on_a_terminal_alone(
    terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar(Console(force_terminal=terminal, width=90), "loading a[/b]") as on_progress:
        on_progress(0, 3)
        on_progress(1, 3, "the text tower")
    shown = capsys.readouterr().out
    assert ("the text tower" in shown) == terminal
    assert terminal or shown == ""


def test_work_that_is_soon_done_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=True)
    with progress_bar(console, "loading", of_bytes=True, delay=60) as on_progress:
        on_progress(5, 10)
    assert capsys.readouterr().out == ""
