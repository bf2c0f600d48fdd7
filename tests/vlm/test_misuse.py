"""Calls that look right and are not: each is refused in one sentence, or means what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_recomp import VLM, GenerationConfig, RecompError, TokenBudget, load
from paddle_recomp.commands.main import main
from paddle_recomp.errors import ConfigError, ImageError, QuestionError
from paddle_recomp.vlm.demo import demo_bundle_folder, demo_pictures

QUESTION = "what digit is red?"
SHORT = GenerationConfig(max_new_tokens=1)


def test_pictures_may_come_from_a_generator(vlm: VLM, picture: Path) -> None:
    seen = vlm.see(picture)
    assert len(vlm.chat(one for one in [seen]).images) == 1  # type: ignore[arg-type]
    alone = vlm.ask(seen, QUESTION)
    assert vlm.ask(iter([seen]), QUESTION).token_ids == alone.token_ids  # type: ignore[arg-type]
    (answer,) = vlm.ask_batch((one for one in [[seen]]), iter([QUESTION]))  # type: ignore[arg-type]
    assert answer.token_ids == alone.token_ids


@pytest.mark.parametrize(
    ("budgets", "says"),
    [
        ([], "0 budgets for 2 questions"),
        ([TokenBudget()] * 3, "3 budgets for 2"),
        ([TokenBudget(), None], "a budget is None"),
        (0, "expected a TokenBudget"),
    ],
)
def test_budgets_that_do_not_fit_are_refused_first(
    budgets: Any, says: str, vlm: VLM, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(vlm.front_end), "see", None)
    with pytest.raises(ConfigError, match=says):
        vlm.ask_batch([picture, picture], [QUESTION] * 2, budgets)


@pytest.mark.parametrize("budget", [0, 32, "all"])
def test_a_budget_of_another_type_is_refused(budget: Any, vlm: VLM, picture: Path) -> None:
    with pytest.raises(ConfigError, match="expected a TokenBudget"):
        vlm.ask(picture, QUESTION, budget)


def test_json_counts_the_tokens_of_every_method(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PruMerge calls one of its stages `kept`."""
    model = ["--model", "demo-checkpoint", "--method", "prumerge", "--json"]
    assert main(["ask", str(picture), QUESTION, *model]) == 0
    counts = json.loads(capsys.readouterr().out)["visual_tokens"]
    assert counts["kept"] == sum(counts["stages"].values()) > 0


@pytest.mark.parametrize("many", [list, iter])
def test_budgets_of_any_number(many: Any, vlm: VLM, picture: Path) -> None:
    """One for each question, from a list or a generator, or one error that counts both."""
    seen, budget = vlm.see(picture), TokenBudget(tokens=4)
    calls: list[Callable[[int, Any], list[Any]]] = [
        lambda n, b: vlm.ask_batch(many([seen] * n), many([QUESTION] * n), b, SHORT),
        lambda n, b: vlm.compress(many([seen] * n), many([QUESTION] * n), b),
        lambda n, b: vlm.front_end.compress(many([seen] * n), many([QUESTION] * n), b),
    ]
    for call in calls:
        assert len(call(2, many([budget] * 2))) == 2
        for number in (0, 1, 3):
            with pytest.raises(ConfigError, match=f"^{number} budgets for 2 questions$"):
                call(2, many([budget] * number))
        with pytest.raises(QuestionError, match="pictures for 0 of 0 questions"):
            call(0, many([]))


@pytest.mark.parametrize("odd", [None, 3, 2.5, object(), [None], [[]], np.zeros(2), b"bytes"])
def test_what_is_no_picture_is_refused(odd: Any, vlm: VLM) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: vlm.see(odd),
        lambda: vlm.ask(odd, QUESTION),
        lambda: list(vlm.stream(odd, QUESTION)),
        lambda: vlm.chat(odd),
        lambda: vlm.ask_batch([odd], [QUESTION]),
        lambda: vlm.compress([odd], [QUESTION], TokenBudget()),
        lambda: vlm.front_end.compress([odd], [QUESTION], TokenBudget()),
    ]
    for call in calls:
        with pytest.raises(ImageError):
            call()


@pytest.mark.parametrize("odd", [None, 3, b"what?", ["what?"], "half \ud800 a character"])
def test_what_is_no_question_is_refused(odd: Any, vlm: VLM, picture: Path) -> None:
    seen = vlm.see(picture)
    calls: list[Callable[[], Any]] = [
        lambda: vlm.ask(seen, odd),
        lambda: vlm.ask_batch([seen], [odd]),
        lambda: vlm.compress([seen], [odd], TokenBudget()),
        lambda: vlm.front_end.compress([seen], [odd], TokenBudget()),
        lambda: vlm.chat(seen).ask(odd),
    ]
    for call in calls:
        with pytest.raises(QuestionError, match=r"of type|half a character"):
            call()


@pytest.mark.parametrize("odd", [None, 3, QUESTION])
def test_questions_that_are_no_list(odd: Any, vlm: VLM, picture: Path) -> None:
    seen = vlm.see(picture)
    with pytest.raises(QuestionError, match="the questions are of type"):
        vlm.ask_batch([seen], odd)
    with pytest.raises(QuestionError, match="the questions are of type"):
        vlm.compress([seen], odd, TokenBudget())


@pytest.mark.parametrize("odd", [3, "greedy", {}, TokenBudget()])
def test_a_generation_of_another_type_is_refused(odd: Any, vlm: VLM, picture: Path) -> None:
    seen = vlm.see(picture)
    for call in (vlm.ask, vlm.stream):
        with pytest.raises(ConfigError, match="expected a GenerationConfig"):
            call(seen, QUESTION, None, odd)
    with pytest.raises(ConfigError, match="expected a GenerationConfig"):
        vlm.ask_batch([seen], [QUESTION], None, odd)
    with pytest.raises(ConfigError, match="expected a GenerationConfig"):
        vlm.chat(seen).ask(QUESTION, None, odd)


def test_no_prompts_are_no_answers(vlm: VLM) -> None:
    assert vlm.answer([]) == []


def test_a_preset_is_named_by_its_function() -> None:
    with pytest.raises(ConfigError, match="expected a CompressionConfig"):
        load("demo-checkpoint", config="faithful")  # type: ignore[arg-type]


def test_every_message_is_one_line() -> None:
    with pytest.raises(ConfigError) as error:
        TokenBudget(tokens="two\nlines\r\n of it")  # type: ignore[arg-type]
    assert len(str(error.value).splitlines()) == 1
    assert str(RecompError("two\nlines")) == "two lines"


def test_a_stream_that_was_cancelled_first_has_an_empty_answer(vlm: VLM, picture: Path) -> None:
    seen, chat = vlm.see(picture), vlm.chat(picture)
    for stream in (vlm.stream(seen, QUESTION), chat.stream(QUESTION)):
        stream.cancel()
        for _ in range(2):
            answer = stream.finish()
            assert (answer.text, answer.token_ids, answer.logprobs) == ("", (), ())
            assert (answer.finish_reason, answer.compressed) == ("cancelled", ())
            assert answer.num_visual_tokens == answer.num_patches == answer.prefilled == 0
        assert stream.answer is None
    assert chat.turns == ()
    assert chat.ask(QUESTION, None, SHORT).finish_reason != "cancelled"


def test_a_stream_that_failed_says_so_again(vlm: VLM, picture: Path) -> None:
    stream = vlm.stream(picture, "  ")
    for _ in range(2):
        with pytest.raises(QuestionError, match="empty"):
            stream.finish()


@pytest.mark.parametrize("command", ["ask", "explain"])
@pytest.mark.parametrize(
    ("name", "says"),
    [("no/where.png", "no folder"), ("", "is a folder"), ("why.xyz", "'.xyz'"), ("why", "''")],
)
def test_where_a_drawing_goes_is_checked_before_a_model_is_loaded(
    command: str,
    name: str,
    says: str,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for loader in ("load", "find"):
        monkeypatch.setattr(f"paddle_recomp.vlm.loading.{loader}", None)
    option = "--overlay" if command == "ask" else "--output"
    assert main([command, str(picture), QUESTION, option, str(tmp_path / name)]) == 2
    assert says in capsys.readouterr().err


def test_a_drawing_of_the_demo_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = next(iter(demo_pictures()))
    (tmp_path / f"1-{first.stem}.png").mkdir()
    assert main(["demo", "-o", str(tmp_path)]) == 2
    assert "cannot write the overlay" in capsys.readouterr().err
    monkeypatch.setattr("paddle_recomp.vlm.loading.load", None)
    (tmp_path / "file").touch()
    for folder in ("file", "file/below"):
        assert main(["demo", "-o", str(tmp_path / folder)]) == 2
        assert "cannot be a folder" in capsys.readouterr().err


def test_the_packaged_bundle_is_verified_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "demo", "--quiet"]) == 0
    assert f"{demo_bundle_folder()}: " in capsys.readouterr().out
