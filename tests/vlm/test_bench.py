"""What `recomp bench` asks, counts and says; never how fast it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddle_recomp.commands.bench import BenchConfig, Report, Row, bench
from paddle_recomp.commands.main import main
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import ConfigError, QuestionError
from paddle_recomp.types import Timing
from paddle_recomp.vlm.machine import peak_memory, reset_peak, this_machine
from paddle_recomp.vlm.vlm import VLM

CONFIG = BenchConfig(tokens=(20,), new_tokens=12, repeats=2)


@pytest.fixture(scope="module")
def report(vlm: VLM, tmp_path_factory: pytest.TempPathFactory) -> Report:
    path = tmp_path_factory.mktemp("bench") / "picture.png"
    Image.effect_noise((200, 150), 80).convert("RGB").save(path)
    return bench(vlm, path, CONFIG)


def test_every_budget_is_asked_in_turn(report: Report) -> None:
    order = [(row.budget, row.question) for row in report.rows]
    assert order == [(name, n) for name in ("full", "dynamic", "20") for n in (1, 2, 3)]
    assert {row.visual_tokens for row in report.rows if row.budget == "full"} == {256}
    assert {row.visual_tokens for row in report.rows if row.budget == "20"} == {20}
    for question in (1, 2):
        full, exact = (report.row(budget, question) for budget in ("full", "20"))
        assert full.prefilled - exact.prefilled == 256 - 20


def test_the_next_question_reads_only_words_where_nothing_is_compressed(report: Report) -> None:
    second, following = (report.row("full", question) for question in (2, 3))
    assert second.prefilled > 256 > 30 > following.prefilled
    assert following.timing.compress == following.timing.text == 0
    recovered = report.row("20", 3)
    assert recovered.timing.compress > 0
    assert following.prefilled <= recovered.prefilled <= following.prefilled + 21


def test_the_vision_tower_is_paid_for_by_the_first_question(report: Report) -> None:
    for row in report.rows:
        for one in row.samples:
            steps = one.vision + one.text + one.compress + one.prefill
            assert one.first_token >= steps
            assert (one.vision > 0) == (row.question == 1)


def test_answers_go_on_where_the_model_would_end_them(
    vlm: VLM, picture: Path, report: Report
) -> None:
    plain = vlm.ask(picture, CONFIG.questions[0], generation=GenerationConfig(max_new_tokens=12))
    assert plain.finish_reason == "stop"
    assert len(plain.token_ids) < 12
    assert {row.new_tokens for row in report.rows} == {12}
    assert {len(row.samples) for row in report.rows} == {2}


def test_it_tells_how_far_it_is(vlm: VLM, picture: Path) -> None:
    heard: list[tuple[int, int]] = []
    config = BenchConfig(tokens=(5,), new_tokens=2, repeats=1)
    bench(vlm, picture, config, lambda done, total: heard.append((done, total)))
    assert heard == [(number, 18) for number in range(1, 19)]


def made_up(budget: str, question: int, *times: tuple[float, float, float]) -> Row:
    """Samples of prefill, first token and decode."""
    samples = tuple(Timing(prefill=p, first_token=f, decode=d) for p, f, d in times)
    return Row(budget, question, 9, 9, new_tokens=5, samples=samples, peak_memory=10**9)


def test_medians_are_of_ratios_and_pairs() -> None:
    rows = (
        made_up("full", 1, (10, 20, 4), (40, 50, 2), (30, 60, 3)),
        made_up("full", 2, (10, 12, 4), (40, 42, 2), (30, 33, 3)),
        made_up("full", 3, (1, 2, 4), (1, 3, 2), (1, 4, 3)),
        made_up("9", 1, (1, 9, 4), (2, 9, 2), (10, 9, 3)),
        made_up("9", 2, (2, 10, 4), (8, 5, 2), (10, 15, 3)),
        made_up("9", 3, (2, 10, 4), (8, 6, 2), (10, 16, 3)),
    )
    report = Report(rows, 9, 10**9, True, this_machine())
    assert rows[0].timing == Timing(prefill=30, first_token=50, decode=3)
    assert rows[0].tokens_per_second == pytest.approx(4 / 3)
    # 10, 20 and 3 of the first questions; 5, 5 and 3 of the second ones.
    assert report.prefill_speed("9") == 5
    assert report.second_share("9") == 15 / 60
    assert report.second_share("full") == 12 / 20
    assert report.next_share("9") == 16 / 4


def test_exact_budgets_fit_the_model() -> None:
    exact = {"full": TokenBudget(full=True), "dynamic": TokenBudget()}
    assert BenchConfig().budgets(576) == {**exact, "64": TokenBudget(tokens=64)}
    assert BenchConfig().budgets(16) == {**exact, "16": TokenBudget(tokens=16)}
    assert list(BenchConfig(tokens=(5, 9)).budgets(16)) == ["full", "dynamic", "5", "9"]
    with pytest.raises(ConfigError, match="16 patches"):
        BenchConfig(tokens=(5, 17)).budgets(16)


def test_numbers_that_measure_nothing() -> None:
    with pytest.raises(ConfigError, match="new_tokens"):
        BenchConfig(new_tokens=1)
    with pytest.raises(ConfigError, match="repeats"):
        BenchConfig(repeats=0)


def test_a_question_must_ask() -> None:
    with pytest.raises(QuestionError):
        BenchConfig(questions=("what is it?", "  "))


def test_a_peak_is_remembered_until_it_is_forgotten() -> None:
    if not reset_peak():
        pytest.skip("the system cannot forget a peak")
    before, size = peak_memory(), 200_000_000
    block = np.ones(size, dtype=np.uint8)
    del block
    assert peak_memory() > before + 0.9 * size
    reset_peak()
    assert peak_memory() < before + 0.5 * size


def test_the_table(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "--image", str(picture), "--new-tokens", "2", "--repeats", "1"]
    assert main([*arguments, "--tokens", "9", "--tokens", "30"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("demo: 256 patches")
    assert lines[1].split()[:3] == ["tokens", "asked", "vision"]
    assert [line.split()[0] for line in lines[2:14]] == [
        *(["full"] * 3 + ["dynamic"] * 3 + ["9"] * 3 + ["30"] * 3)
    ]
    assert [line.split(":")[0] for line in lines[14:17]] == ["dynamic", "9 tokens", "30 tokens"]
    assert "onnxruntime" in lines[-1]
    assert all(len(line) <= 80 for line in lines[1:14])


def test_json(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "bench",
        "demo-checkpoint",
        "--image",
        str(picture),
        "--new-tokens",
        "3",
        "--repeats",
        "1",
    ]
    assert main([*arguments, "--question", "is it red?", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["budget"] for row in found["rows"]] == ["full"] * 3 + ["dynamic"] * 3 + ["64"] * 3
    # One question is both.
    assert found["rows"][0]["prefilled"] == found["rows"][1]["prefilled"]
    for row in found["rows"]:
        assert row["new_tokens"] == 3
        assert row["timing_ms"]["first_token"] > row["timing_ms"]["prefill"] > 0
        assert 0 < row["peak_memory"] <= found["peak_memory"]
    assert found["gains"]["full"]["prefill_speed"] == 1
    assert found["machine"]["cores"] >= 1
    assert "paddle" in found["machine"]["versions"]
