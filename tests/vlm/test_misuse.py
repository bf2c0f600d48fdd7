"""Calls that look right and are not: each is refused in one sentence, or means what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paddle_recomp import VLM, TokenBudget
from paddle_recomp.commands.main import main
from paddle_recomp.errors import ConfigError

QUESTION = "what digit is red?"


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


def test_a_folder_that_is_a_file_is_one_line(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "-o", str(picture)]) == 2
    assert "cannot be a folder" in capsys.readouterr().err
