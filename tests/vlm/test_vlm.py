"""See once, ask many: the runner's invariants on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddle_recomp.compression.config import preset
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import (
    ConfigError,
    ContextLengthError,
    DeviceError,
    FeatureError,
    QuestionError,
    RecompWarning,
)
from paddle_recomp.types import Stage
from paddle_recomp.vlm.demo import demo_pictures
from paddle_recomp.vlm.front_end import Images
from paddle_recomp.vlm.loading import load
from paddle_recomp.vlm.vlm import VLM
from tests.vlm.counting import CountingBackend, counting

QUESTIONS = [
    "what digit is red?",
    "what color is the 7?",
    "where is the circle?",
    "how many digits are there?",
    "what shape is blue?",
]
SHORT = GenerationConfig(max_new_tokens=4)


@pytest.fixture
def counted(vlm: VLM) -> tuple[VLM, CountingBackend]:
    return counting(vlm)


def test_an_image_is_seen_once_and_recompressed_for_each_question(
    counted: tuple[VLM, CountingBackend],
) -> None:
    vlm, backend = counted
    seen = vlm.see(next(iter(demo_pictures())))
    kept = []
    for question in QUESTIONS:
        answer = vlm.ask(seen, question, generation=GenerationConfig(max_new_tokens=2))
        (compressed,) = answer.compressed
        kept.append(frozenset(compressed.index[compressed.stage == Stage.TEXT].tolist()))
        assert answer.timing.vision == 0
    assert backend.runs == {"vision": 1, "text": 5, "compress": 5}
    assert all(kept), "every question must recover something by its text"
    assert len(set(kept)) >= 4, "different questions must recover different patches"


def test_stream_and_ask_agree(vlm: VLM, picture: Path) -> None:
    stream = vlm.stream(picture, QUESTIONS[0], generation=GenerationConfig(max_new_tokens=6))
    text = "".join(stream)
    answer = vlm.ask(picture, QUESTIONS[0], generation=GenerationConfig(max_new_tokens=6))
    assert stream.answer is not None
    assert stream.answer.text == answer.text == text.strip()
    assert answer.timing.vision > 0
    total = answer.timing
    assert total.first_token >= total.vision + total.text + total.compress + total.prefill - 1e-3


@pytest.mark.parametrize("budget", [TokenBudget(), TokenBudget(tokens=24), TokenBudget(full=True)])
def test_a_batch_equals_its_singles(vlm: VLM, budget: TokenBudget) -> None:
    images = vlm.front_end.see(list(demo_pictures())[:3])
    together = vlm.ask_batch(
        images, QUESTIONS[:3], budget, generation=GenerationConfig(max_new_tokens=4)
    )
    for image, question, batched in zip(images, QUESTIONS, together, strict=False):
        alone = vlm.ask(image, question, budget, generation=GenerationConfig(max_new_tokens=4))
        assert batched.token_ids == alone.token_ids
        assert batched.stage_counts == alone.stage_counts


def test_a_batch_is_one_pass_and_says_what_it_took(counted: tuple[VLM, CountingBackend]) -> None:
    """Also over pictures that several questions share; only the new ones are seen."""
    vlm, backend = counted
    first, second, third = list(demo_pictures())[:3]
    seen = vlm.see(third)
    backend.runs.clear()
    backend.images = 0
    with Image.open(second) as opened:
        images: list[Images] = [first, [str(first), opened], [opened, seen], []]
        answers = vlm.ask_batch(images, QUESTIONS[:4], generation=SHORT)
    assert backend.runs == {"vision": 1, "text": 1, "compress": 1}
    assert backend.images == 2
    assert [len(answer.compressed) for answer in answers] == [1, 2, 2, 0]
    for answer in answers:
        time = answer.timing
        assert time.vision > 0
        assert time.vision == answers[0].timing.vision
        assert time.first_token >= time.vision + time.text + time.compress + time.prefill
    for group, question, batched in zip(images[:2], QUESTIONS, answers, strict=False):
        alone = vlm.ask(group if group is first else [first, second], question, generation=SHORT)
        assert batched.token_ids == alone.token_ids
    (again,) = vlm.ask_batch([seen], QUESTIONS[:1], generation=SHORT)
    assert again.timing.vision == 0


def test_a_batch_is_checked_before_anything_runs(counted: tuple[VLM, CountingBackend]) -> None:
    vlm, backend = counted
    pictures = list(demo_pictures())[:2]
    for questions, says in (
        (QUESTIONS[:1], "pictures for 2 of 1 questions"),
        ([QUESTIONS[0], " "], "empty"),
        ([QUESTIONS[0], "<image> or <image>?"], "2, its pictures: 1"),
    ):
        with pytest.raises(QuestionError, match=says):
            vlm.ask_batch(pictures, questions)
    assert not backend.runs


def test_full_is_every_patch_through_the_projector(vlm: VLM, picture: Path) -> None:
    seen = vlm.see(picture)
    (prompt,) = vlm.front_end.compress([seen], [QUESTIONS[0]], TokenBudget(full=True))
    np.testing.assert_array_equal(prompt.compressed[0].index[0], np.arange(seen.num_patches))
    assert vlm.ask(seen, QUESTIONS[0], TokenBudget(full=True)).num_visual_tokens == 256


def test_faithful_never_reads_the_question(picture: Path) -> None:
    vlm = load("demo-checkpoint", config=preset("faithful"))
    seen = vlm.see(picture)
    first, second = (vlm.compress([seen], [q], TokenBudget())[0].pictures for q in QUESTIONS[:2])
    np.testing.assert_array_equal(first.compressed[0].index, second.compressed[0].index)
    answers = [vlm.chat(seen, "recompress").ask(q) for q in QUESTIONS[:2]]
    for answer in answers:
        np.testing.assert_array_equal(answer.compressed[0].index, first.compressed[0].index)


def test_text_that_cannot_be_asked(vlm: VLM, picture: Path) -> None:
    for bad in ("", " \n", "<image> or <image>?"):
        with pytest.raises(QuestionError):
            vlm.ask(picture, bad)
    with pytest.warns(RecompWarning, match="77"):
        vlm.ask(picture, "red " * 120, generation=GenerationConfig(max_new_tokens=1))
    with (
        pytest.warns(RecompWarning, match="77"),
        pytest.raises(ContextLengthError, match="context is 2048"),
    ):
        vlm.ask(picture, "red " * 2500, generation=GenerationConfig(max_new_tokens=1))


def test_impossible_budgets_and_devices(vlm: VLM, picture: Path) -> None:
    with pytest.raises(ConfigError, match=r"300.*256 patches"):
        vlm.ask(picture, QUESTIONS[0], TokenBudget(tokens=300))
    for device in ("gpu:7", "tpu", "gpu:x"):
        with pytest.raises(DeviceError, match="available: cpu"):
            load("demo-checkpoint", device=device)


def test_broken_weights_are_noticed(vlm: VLM, picture: Path) -> None:
    pixels = np.full((1, 3, 224, 224), np.nan, dtype=np.float32)
    with pytest.raises(FeatureError, match="NaN"):
        vlm.front_end.backend.run("vision", {"pixel_values": pixels})


def test_shipped_questions_are_answered(vlm: VLM) -> None:
    """The pictures were chosen so that the uncompressed model is right about all of them."""
    asked = [question for questions in demo_pictures().values() for question in questions]
    assert len(asked) >= 12
    images = {path: vlm.see(path) for path in demo_pictures()}
    answers = vlm.ask_batch(
        [images[one.picture] for one in asked],
        [one.question for one in asked],
        TokenBudget(full=True),
        generation=GenerationConfig(max_new_tokens=8),
    )
    assert [answer.text for answer in answers] == [one.expected for one in asked]


def test_two_questions_about_one_crowded_picture() -> None:
    pictures = demo_pictures()
    scenes = json.loads((next(iter(pictures)).parent / "scenes.json").read_text())
    assert max(len(scene["objects"]) for scene in scenes) >= 5
    assert all(len(questions) >= 2 for questions in pictures.values())
