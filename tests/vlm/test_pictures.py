"""Several pictures in a question, or none: what the language model reads, and who gets how many
tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from paddle_recomp.commands.main import main
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import ConfigError, ContextLengthError, QuestionError
from paddle_recomp.preprocess import Turn
from paddle_recomp.vlm.conversation import Mode
from paddle_recomp.vlm.demo import demo_pictures
from paddle_recomp.vlm.front_end import SeenImage, VisualFrontEnd
from paddle_recomp.vlm.vlm import VLM
from tests.vlm.counting import counting
from tests.vlm.recording import Recording, embeddings

QUESTION = "what digit is red?"
SHORT = GenerationConfig(max_new_tokens=4)
BUDGET = TokenBudget(tokens=33)


@pytest.fixture(scope="module")
def seen(vlm: VLM) -> list[SeenImage]:
    return vlm.front_end.see(list(demo_pictures())[:3])


@pytest.fixture
def recording(vlm: VLM) -> tuple[VLM, Recording]:
    heard = Recording(vlm.answerer.model)
    return VLM(vlm.front_end, replace(vlm.answerer, model=heard)), heard


def alone(front_end: VisualFrontEnd, image: SeenImage, question: str, tokens: int) -> np.ndarray:
    (prompt,) = front_end.compress([image], [question], TokenBudget(tokens=tokens))
    return np.asarray(prompt.compressed[0].embeds[0])


@pytest.mark.parametrize(
    "question", [QUESTION, "is <image> as red as <image>?", "<image><image> which?"]
)
def test_each_picture_stands_in_its_place(
    question: str, recording: tuple[VLM, Recording], seen: list[SeenImage]
) -> None:
    """33 tokens for two pictures are 17 and 16, each as compressed alone for the words."""
    vlm, heard = recording
    answer = vlm.ask(seen[:2], question, BUDGET, SHORT)
    words = question.replace("<image>", " ")
    blocks = [
        alone(vlm.front_end, image, words, tokens)
        for image, tokens in zip(seen, (17, 16), strict=False)
    ]
    expected = embeddings(vlm, [Turn(question, images=2)], blocks)
    np.testing.assert_allclose(heard.read[0], expected, rtol=0, atol=1e-5)
    assert [int(one.count[0]) for one in answer.compressed] == [17, 16]
    assert (answer.num_visual_tokens, answer.num_patches) == (33, 512)
    assert answer.prefilled == len(expected)


def test_no_picture_costs_nothing(vlm: VLM) -> None:
    ours, backend = counting(vlm)
    heard = Recording(vlm.answerer.model)
    ours = VLM(ours.front_end, replace(vlm.answerer, model=heard))
    answer = ours.ask([], QUESTION, BUDGET, SHORT)
    assert not backend.runs
    np.testing.assert_array_equal(heard.read[0], embeddings(vlm, [Turn(QUESTION)], []))
    assert (answer.compressed, answer.num_visual_tokens, answer.num_patches) == ((), 0, 0)
    assert answer.timing.vision == answer.timing.compress == answer.timing.text == 0


def test_only_new_pictures_are_seen(vlm: VLM, seen: list[SeenImage]) -> None:
    ours, backend = counting(vlm)
    paths = list(demo_pictures())
    mixed = ours.ask([seen[0], paths[1], Image.open(paths[2])], QUESTION, BUDGET, SHORT)
    assert (backend.runs["vision"], backend.images) == (1, 2)
    assert mixed.timing.vision > 0
    assert mixed.token_ids == vlm.ask(seen, QUESTION, BUDGET, SHORT).token_ids
    assert (backend.runs["text"], backend.runs["compress"]) == (1, 1)


def test_a_batch_of_different_counts_equals_its_singles(vlm: VLM, seen: list[SeenImage]) -> None:
    images: list[list[SeenImage]] = [seen[:2], [], seen[2:], seen]
    questions = [QUESTION, "what is it?", "where is the circle?", "are <image><image><image> red?"]
    budgets = [BUDGET, TokenBudget(), TokenBudget(max_tokens=9), TokenBudget(ratio=0.05)]
    together = vlm.ask_batch(images, questions, budgets, SHORT)
    for asked, question, budget, answer in zip(images, questions, budgets, together, strict=True):
        single = vlm.ask(asked, question, budget, SHORT)
        assert answer.token_ids == single.token_ids
        assert answer.prefilled == single.prefilled
        assert [one.index.tolist() for one in answer.compressed] == [
            one.index.tolist() for one in single.compressed
        ]


def test_order_matters(vlm: VLM, recording: tuple[VLM, Recording], seen: list[SeenImage]) -> None:
    ours, heard = recording
    read = []
    for pair in (seen[:2], seen[1::-1]):
        ours.ask(pair, QUESTION, TokenBudget(tokens=32), SHORT)
        read.append(heard.read[0])
    assert read[0].shape == read[1].shape
    assert not np.allclose(read[0], read[1])


@given(total=st.integers(1, 700), count=st.integers(1, 9), patches=st.sampled_from([1, 49, 256]))
def test_shares_of_a_budget(total: int, count: int, patches: int) -> None:
    exact, most = TokenBudget(tokens=total), TokenBudget(max_tokens=total)
    if total < count:
        for budget in (exact, most):
            with pytest.raises(ConfigError, match=f"{total}, which {count} images cannot share"):
                budget.bounds(patches, count)
        return
    least = [low for low, _ in most.bounds(patches, count)]
    upper = [high for _, high in most.bounds(patches, count)]
    assert least == [1] * count
    assert sum(upper) == min(total, patches * count)
    if total > patches * count:
        with pytest.raises(ConfigError, match=f"only {patches * count} patches"):
            exact.bounds(patches, count)
        return
    shares = exact.bounds(patches, count)
    assert all(low == high for low, high in shares)
    assert sum(high for _, high in shares) == total
    assert max(shares)[0] - min(shares)[0] <= 1
    assert shares == sorted(shares, reverse=True)


def test_budgets_without_a_total() -> None:
    assert TokenBudget().bounds(256, 3) == [(1, 256)] * 3
    assert TokenBudget(full=True).bounds(256, 2) == [(256, 256)] * 2
    assert TokenBudget(ratio=0.5).bounds(256, 2) == [(128, 128)] * 2
    for budget in (TokenBudget(), TokenBudget(tokens=1), TokenBudget(max_tokens=1)):
        assert budget.bounds(256, 0) == []


def test_too_much_for_the_context(vlm: VLM, seen: list[SeenImage]) -> None:
    """The error says how much would fit, and that much does."""
    many, full = seen * 3, TokenBudget(full=True)
    with pytest.raises(ContextLengthError, match=r"2304 visual tokens.* is 2048: at most") as error:
        vlm.ask(many, QUESTION, full, SHORT)
    room = int(str(error.value).split("at most ")[1].split()[0])
    answer = vlm.ask(many, QUESTION, TokenBudget(tokens=room), SHORT)
    assert answer.prefilled + SHORT.max_new_tokens == 2048
    with pytest.raises(ContextLengthError, match=f"at most {room} visual"):
        vlm.ask(many, QUESTION, TokenBudget(tokens=room + 1), SHORT)
    with pytest.raises(ContextLengthError, match="the text has to be shorter, or the answer"):
        vlm.ask([], QUESTION, full, GenerationConfig(max_new_tokens=2048))
    words = answer.prefilled - room
    for left, fits in ((8, "the text has to be shorter, or the answer"), (9, "at most 9 visual")):
        long = GenerationConfig(max_new_tokens=2048 - words - left)
        with pytest.raises(ContextLengthError, match=fits):
            vlm.ask(many, QUESTION, TokenBudget(tokens=10), long)


def test_places_that_do_not_fit_the_pictures(vlm: VLM, seen: list[SeenImage]) -> None:
    ours, backend = counting(vlm)
    pictures = list(demo_pictures())
    with pytest.raises(QuestionError, match="1, its pictures: 2"):
        ours.ask(pictures[:2], "what is <image>?")
    with pytest.raises(QuestionError, match="2, its pictures: 0"):
        ours.ask([], "<image> or <image>?")
    assert not backend.runs, "found before the vision tower ran"
    with pytest.raises(QuestionError, match="pictures for 1 of 2 questions"):
        ours.ask_batch([seen[0]], [QUESTION, QUESTION])


@pytest.mark.parametrize("mode", ["recompress", "append", "keep"])
def test_a_conversation_about_two_pictures(
    mode: Mode, recording: tuple[VLM, Recording], seen: list[SeenImage]
) -> None:
    """Every question recovers patches of both pictures, in their order."""
    vlm, heard = recording
    chat = vlm.chat(seen[:2], mode)
    questions = ["is <image> like <image>?", "where is the circle?"]
    compressed = [
        vlm.front_end.compress([seen[:2]], [text.replace("<image>", " ")], BUDGET)[0].compressed
        for text in questions
    ]
    first = chat.ask(questions[0], BUDGET, SHORT)
    blocks = [one.embeds[0] for one in compressed[0]]
    begun = embeddings(vlm, [Turn(questions[0], images=2)], blocks)
    np.testing.assert_allclose(heard.read[0], begun, rtol=0, atol=1e-5)

    chat.ask(questions[1], BUDGET, SHORT)
    recovered = []
    if mode == "recompress":
        blocks = [one.embeds[0] for one in compressed[1]]
    elif mode == "append":
        for before, after in zip(*compressed, strict=True):
            new = (after.index[0] >= 0) & ~np.isin(after.index[0], before.index[0])
            recovered += [after.embeds[0][new]] if new.any() else []
        assert len(recovered) == 2, "both pictures have something"
    turns = [Turn(questions[0], first.text, 2), Turn(questions[1], images=len(recovered))]
    whole = embeddings(vlm, turns, [*blocks, *recovered])
    read = np.concatenate(heard.read)[-0 if mode == "recompress" else 0 :]
    np.testing.assert_allclose(read[: len(whole)], whole, rtol=0, atol=1e-5)
    with pytest.raises(QuestionError, match="2, its pictures: 0"):
        chat.ask(questions[0], BUDGET, SHORT)


@pytest.mark.parametrize("mode", ["recompress", "append", "keep"])
def test_a_conversation_without_a_picture(mode: Mode, recording: tuple[VLM, Recording]) -> None:
    vlm, heard = recording
    chat = vlm.chat([], mode)
    said = [chat.ask(question, generation=SHORT).text for question in ("what?", "why?")]
    turns = [Turn("what?", said[0]), Turn("why?")]
    whole = embeddings(vlm, turns, [])
    np.testing.assert_array_equal(np.concatenate(heard.read)[: len(whole)], whole)
    assert chat.num_visual_tokens == 0


def test_the_command_takes_several(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    paths = [str(path) for path in list(demo_pictures())[:2]]
    overlay, short = tmp_path / "why.png", ["--max-new-tokens", "2"]
    options = ["--tokens", "21", "--json", "--overlay", str(overlay), *short]
    assert main(["ask", *paths, QUESTION, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["file"] for one in report["images"]] == paths
    assert [one["kept"] for one in report["images"]] == [11, 10]
    assert (report["visual_tokens"]["kept"], report["visual_tokens"]["of"]) == (21, 512)
    wide = Image.open(overlay).size
    assert main(["explain", paths[0], QUESTION, "-o", str(overlay)]) == 0
    assert wide[0] == 2 * Image.open(overlay).width

    assert main(["ask", QUESTION, *short]) == 0
    assert "no picture" in capsys.readouterr().err
