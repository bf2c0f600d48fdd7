"""The comparison of the decoder with other runtimes: its table, and the graphs that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.other_runtimes.decoder_runtimes import (
    COLUMNS,
    OURS,
    PACKAGES,
    ROWS,
    Found,
    Row,
    table_line,
)
from benchmarks.other_runtimes.genai_decoder import CONFIG, stand_in, write_genai
from export.decoder.write import write_decoder
from paddle_recomp.llm.onnx_decoder import OnnxDecoder, cache_names
from paddle_recomp.vlm.loading import find_checkpoint


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
