"""The tools behind the numbers: their layouts and their arithmetic, on small inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.progress import Progress

from benchmarks.comparing import budgets_for, kept_alike
from benchmarks.held_out import draw_items
from benchmarks.int8_answers import compare, paired_interval, uncalibrated
from benchmarks.random_checkpoint import SHAPES, SHARD_BYTES, spec_of, write_checkpoint
from benchmarks.whole_models import GAINS, in_own_process, markdown
from export.samples import calibration_questions
from paddle_recomp.checkpoint import PARTS, ModelSpec, open_checkpoint
from paddle_recomp.commands.bench import COLUMNS as BENCH_COLUMNS
from paddle_recomp.config import TokenBudget
from paddle_recomp.types import Answer, Stage, Timing, VisualTokens
from paddle_recomp.vlm.loading import find_checkpoint, load_front_end


def compressed(patches: list[int], stages: list[Stage]) -> VisualTokens:
    """Tokens whose embedding is the number of their patch, for one image of eight patches."""
    index = np.array([patches])
    return VisualTokens(
        embeds=np.stack([np.array([[p, 1.0] for p in patches])]),
        count=np.array([len(patches)]),
        index=index,
        stage=np.array([[int(stage) for stage in stages]]),
        owner=np.zeros((1, 8), dtype=np.int64),
        centre=np.full_like(index, -1),
    )


def test_merged_tokens_are_no_part_of_the_overlap() -> None:
    kept, asked, merged = Stage.VISUAL, Stage.TEXT, Stage.MERGED
    first = compressed([1, 2, 3, -1], [kept, kept, asked, merged])
    second = compressed([2, 3, 4, -1], [kept, kept, kept, merged])
    assert kept_alike(first, second) == pytest.approx((2 / 4, 1.0))


def answer(text: str, kept: VisualTokens) -> Answer:
    counts = {"visual": int(kept.count[0])}
    return Answer(text, (), counts, 8, Timing(), (kept,), "stop", ())


def test_a_comparison_counts_what_each_side_answers_right() -> None:
    items = draw_items(1)[:4]
    right = [item.question.answer for item in items]
    same = compressed([1, 2], [Stage.VISUAL, Stage.VISUAL])
    other = compressed([1, 3], [Stage.VISUAL, Stage.VISUAL])
    expected = [answer(text, same) for text in (*right[:3], "wrong")]
    found = [answer(text, kept) for text, kept in zip(("no", *right[1:]), [other] * 4, strict=True)]
    row = compare(items, expected, iter(found))
    assert (row.accuracy_fp32, row.accuracy_int8) == (75.0, 75.0)
    assert (row.lost, row.gained, row.difference) == (1, 1, 0.0)
    assert row.overlap == pytest.approx(1 / 3, abs=1e-4)
    assert (row.tokens_fp32, row.tokens_int8) == (2.0, 2.0)


def test_budgets_are_shares_of_the_patches() -> None:
    assert budgets_for(256) == {
        "full": TokenBudget(full=True),
        "dynamic": TokenBudget(),
        "12.5%": TokenBudget(tokens=32),
        "25%": TokenBudget(tokens=64),
    }


def test_no_question_of_the_answers_is_calibrated_on() -> None:
    asked = {item.question.question for item in uncalibrated(draw_items(20))}
    assert len(asked) > 20
    assert not asked & set(calibration_questions(None))


def test_an_interval_holds_the_mean_and_knows_what_errs_together() -> None:
    rng = np.random.default_rng(0)
    change = rng.choice([-1, 0, 0, 0, 0, 0, 0, 1], size=2000)
    alone = paired_interval(change, np.arange(2000))
    assert alone[0] < change.mean() < alone[1]
    # Of the normal approximation.
    half = 1.96 * change.std() / 2000**0.5
    np.testing.assert_allclose(alone, [change.mean() - half, change.mean() + half], atol=0.002)
    # Twenty copies of a question are one question, not twenty.
    low, high = paired_interval(np.repeat(change[:100], 20), np.repeat(np.arange(100), 20))
    assert high - low > 4 * (alone[1] - alone[0])


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_a_reversed_comparison_has_the_reversed_interval(change: list[int]) -> None:
    numbers, group = np.array(change), np.arange(len(change)) // 3
    low, high = paired_interval(numbers, group)
    other_low, other_high = paired_interval(-numbers, group)
    assert low <= high
    np.testing.assert_allclose([other_low, other_high], [-high, -low], atol=1e-12)


def small(spec: ModelSpec) -> ModelSpec:
    """The same layout with little in it; the words stay as many, as the tokenizer has them."""
    vision = replace(
        spec.vision,
        image_size=56,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        projection_dim=8,
    )
    text = replace(
        spec.text,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        projection_dim=8,
    )
    language = replace(
        spec.language,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
    )
    projector = replace(spec.projector, in_features=16, out_features=16)
    return replace(spec, vision=vision, text=text, projector=projector, language=language)


def write(spec: ModelSpec, folder: Path, seed: int = 0, shard_bytes: int = SHARD_BYTES) -> None:
    with Progress(disable=True) as progress:
        write_checkpoint(spec, folder, seed, progress, shard_bytes)


def test_a_random_checkpoint_is_one_that_people_have(tmp_path: Path) -> None:
    spec = small(SHAPES["llava-1.5-7b"])
    write(spec, tmp_path / "model")
    opened = open_checkpoint(tmp_path / "model")
    assert opened.spec == spec
    for part in PARTS:
        for _, array in opened.parameters(part):
            assert np.isfinite(array).all()
    front_end = load_front_end(find_checkpoint(tmp_path / "model"))
    seen = front_end.see([Image.new("RGB", (64, 48))])
    assert seen[0].num_patches == 16
    (prompt,) = front_end.compress(seen, ["what is it?"], TokenBudget(tokens=5))
    assert prompt.compressed[0].embeds.shape == (1, 5, 16)


def test_a_random_checkpoint_repeats_by_its_seed(tmp_path: Path) -> None:
    spec = small(SHAPES["llava-1.5-7b"])
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(spec, tmp_path / name, seed)
    first, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == again != other


def test_the_demo_shape_is_the_demo(tmp_path: Path) -> None:
    write(spec_of("demo"), tmp_path / "demo")
    found, demo = open_checkpoint(tmp_path / "demo"), find_checkpoint("demo")
    assert found.spec == demo.spec
    for part in PARTS:
        ours, theirs = (
            {name: array.shape for name, array in one.parameters(part)} for one in (found, demo)
        )
        assert ours == theirs


def test_a_large_random_checkpoint_is_sharded(tmp_path: Path) -> None:
    spec = small(SHAPES["llava-1.5-7b"])
    write(spec, tmp_path / "model", shard_bytes=2**20)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 1
    assert all((tmp_path / "model" / name).is_file() for name in shards)
    assert open_checkpoint(tmp_path / "model").spec == spec


def test_whole_models_are_lines_of_two_tables() -> None:
    found = in_own_process("demo", new_tokens=2, repeats=1)
    models = {"one": found, "other": found}
    for columns, key, count in ((BENCH_COLUMNS, "rows", 9), (GAINS, "gains", 2)):
        lines = markdown(columns, models, key).splitlines()
        assert len(lines) == 2 + 2 * count
        assert {line.count("|") for line in lines} == {len(columns) + 2}
        names = [line.split("|")[1].strip() for line in lines[2:]]
        assert names == ["one", *[""] * (count - 1), "other", *[""] * (count - 1)]
    assert [row[0] for row in found["rows"]][::3] == ["full 256", found["rows"][3][0], "64"]
    assert [row[0] for row in found["gains"]] == ["dynamic", "64"]
