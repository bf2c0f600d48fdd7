"""The tools behind the numbers: their layouts and their arithmetic, on small inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.progress import Progress

from benchmarks.comparing import budgets_for, kept_alike
from benchmarks.decoder_runtimes import COLUMNS, OURS, PACKAGES, ROWS, Found, Row, table_line
from benchmarks.genai_decoder import CONFIG, stand_in, write_genai
from benchmarks.held_out import draw_items
from benchmarks.int8_answers import compare, paired_interval
from benchmarks.int8_tokens import PHOTOS
from benchmarks.random_checkpoint import SHAPES, SHARD_BYTES, spec_of, write_checkpoint
from benchmarks.whole_models import GAINS, in_own_process, markdown
from export.decoder.write import write_decoder
from export.samples import _PHOTOS
from paddle_recomp.checkpoint import PARTS, ModelSpec, open_checkpoint
from paddle_recomp.commands.bench import COLUMNS as BENCH_COLUMNS
from paddle_recomp.config import TokenBudget
from paddle_recomp.llm.onnx_decoder import OnnxDecoder, cache_names
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


def test_no_photograph_is_calibrated_on() -> None:
    assert not set(PHOTOS) & set(_PHOTOS)


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


def measured(seconds: float, logits: np.ndarray) -> Found:
    names = ("prefill 640", "prefill 128", "decode", "load", "peak", "anonymous")
    return Found(dict.fromkeys(names, seconds), logits)


def test_a_runtime_with_other_logits_has_no_times() -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(3, 50)).astype(np.float32)
    ours = measured(2.0, exact + rng.normal(0, 0.1, exact.shape))
    other = Row("other", "int8", "wide")
    near = table_line(other, measured(0.5, exact), ours, exact)
    cells = [cell.strip() for cell in near.strip("|").split("|")]
    assert cells[:5] == ["int8", "other, wide", "0.500 s (4.00)", "0.500 s (4.00)", "2.0/s (4.00)"]
    far = table_line(other, measured(0.5, rng.normal(size=exact.shape)), ours, exact)
    assert "other logits" in far
    assert "0.500 s" not in far
    broken = table_line(other, measured(0.5, exact * np.nan), ours, exact)
    assert "other logits" in broken
    absent = table_line(other, "not installed: it", ours, exact)
    assert absent.startswith("| int8 | other, wide | not installed: it |")
    for line in (near, far, broken, absent):
        assert line.count("|") == len(COLUMNS) + 1


def test_each_precision_begins_with_what_it_is_compared_with() -> None:
    for precision in {row.precision for row in ROWS}:
        rows = [row for row in ROWS if row.precision == precision]
        assert [row.runtime == OURS for row in rows] == [True] + [False] * (len(rows) - 1)
        assert len({row.name for row in rows}) == len(rows)
    assert ROWS[0].precision == "fp32"
    assert {row.runtime for row in ROWS} == set(PACKAGES)


def test_the_graphs_for_genai_are_the_decoder(tmp_path: Path) -> None:
    info = write_decoder(find_checkpoint("demo"), tmp_path, "int4", {})
    write_genai(tmp_path, info, 1)
    picture = stand_in(info)
    about = json.loads((tmp_path / CONFIG).read_text())["model"]
    decoder, words, pictures = (
        onnxruntime.InferenceSession(str(tmp_path / about[part]["filename"]))
        for part in ("decoder", "embedding", "vision")
    )
    ours = OnnxDecoder(tmp_path, info)

    features = np.random.default_rng(0).normal(size=(2, info.hidden_size)).astype(np.float32)
    (seen,) = pictures.run(None, {"pixel_values": features})
    ids = np.array([[7, picture, 8, picture, 9]])
    (embeds,) = words.run(["inputs_embeds"], {"input_ids": ids, "image_features": seen})
    expected = ours.embed(ids)
    expected[0, [1, 3]] = features
    np.testing.assert_array_equal(embeds, expected)
    (plain,) = words.run(None, {"input_ids": ids[:, ::2], "image_features": features[:0]})
    np.testing.assert_array_equal(plain, expected[:, ::2])

    inputs, outputs = about["decoder"]["inputs"], about["decoder"]["outputs"]
    shape = (1, info.num_kv_heads, 8, info.cache_width)
    cache = {name: np.zeros(shape, np.float32) for name, _ in cache_names(info)}
    assert {inputs[f"past_{kind}_names"] % 0 for kind in ("key", "value")} <= set(cache)
    logits, state = ours.prefill(embeds, np.array([5]), 8)
    steps = [(logits, embeds)]
    for token in (3, 4):
        logits, state = ours.decode(np.array([token]), state)
        steps.append((logits, ours.embed(np.array([[token]]))))
    for total, (logits, part) in enumerate(steps, start=5):
        mask = np.ones((1, total), np.int64)
        found, *present = decoder.run(
            [outputs["logits"], *(name for _, name in cache_names(info))],
            {inputs["inputs_embeds"]: part, inputs["attention_mask"]: mask, **cache},
        )
        cache = dict(zip(cache, present, strict=True))
        np.testing.assert_allclose(found[:, 0], logits, atol=1e-5)


def test_whole_models_are_lines_of_two_tables() -> None:
    found = in_own_process("demo", new_tokens=2, repeats=1)
    models = {"one": found, "other": found}
    for columns, key, count in ((BENCH_COLUMNS, "rows", 6), (GAINS, "gains", 2)):
        lines = markdown(columns, models, key).splitlines()
        assert len(lines) == 2 + 2 * count
        assert {line.count("|") for line in lines} == {len(columns) + 2}
        names = [line.split("|")[1].strip() for line in lines[2:]]
        assert names == ["one", *[""] * (count - 1), "other", *[""] * (count - 1)]
    assert [row[0] for row in found["rows"]][::2] == ["full 256", found["rows"][2][0], "64"]
    assert [row[0] for row in found["gains"]] == ["dynamic", "64"]
