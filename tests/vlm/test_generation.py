"""Generation through the whole runner, over both language models: what ends an answer, and that
the next one is none the worse for it."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.decoder.write import write_decoder
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import FeatureError
from paddle_recomp.llm.onnx_decoder import OnnxDecoder
from paddle_recomp.types import Answer, AnswerStream
from paddle_recomp.vlm.demo import demo_pictures
from paddle_recomp.vlm.front_end import SeenImage
from paddle_recomp.vlm.loading import find_checkpoint
from paddle_recomp.vlm.vlm import VLM

DOCUMENT = Path(__file__).parents[2] / "docs" / "generation.md"
QUESTION = "what digit is red?"
LONG = GenerationConfig(max_new_tokens=20, temperature=5.0, top_k=300, seed=1)
"""Hot enough that the demo's answer, a word otherwise, goes on."""


@pytest.fixture(scope="module", params=["paddlenlp", "onnx"])
def either(request: pytest.FixtureRequest, vlm: VLM, tmp_path_factory: Any) -> VLM:
    """The demo with its language model in each runtime."""
    if request.param == "paddlenlp":
        return vlm
    folder = tmp_path_factory.mktemp("decoder")
    info = write_decoder(find_checkpoint("demo"), folder, "fp32", {})
    return VLM(vlm.front_end, replace(vlm.answerer, model=OnnxDecoder(folder, info)))


@pytest.fixture(scope="module")
def seen(vlm: VLM) -> SeenImage:
    return vlm.see(next(iter(demo_pictures())))


@pytest.fixture(scope="module")
def whole(either: VLM, seen: SeenImage) -> Answer:
    """The long answer that the tests cut short."""
    answer = either.ask(seen, QUESTION, generation=LONG)
    assert len(answer.token_ids) >= 8
    return answer


class Failing:
    """A language model in which something happens at the third token."""

    def __init__(self, model: Any, error: BaseException) -> None:
        self.model, self.error, self.left = model, error, 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def decode(self, *arguments: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.model.decode(*arguments)


def test_a_greedy_answer_says_why_it_ended(either: VLM, seen: SeenImage) -> None:
    answer = either.ask(seen, QUESTION)
    assert (answer.text, answer.finish_reason) == ("circle", "stop")
    assert len(answer.logprobs) == len(answer.token_ids) == 1
    assert -0.01 < answer.logprobs[0] < 0
    short = either.ask(seen, QUESTION, generation=GenerationConfig(max_new_tokens=1))
    assert (short.token_ids, short.finish_reason) == (answer.token_ids, "length")


def test_drawn_answers_of_a_batch_equal_their_singles(either: VLM) -> None:
    pictures = list(demo_pictures())[:3]
    images = [either.see(path) for path in pictures]
    questions = [QUESTION, "where is the circle?", "how many digits are there?"]
    budget = TokenBudget(tokens=24)
    together = either.ask_batch(images, questions, budget, LONG)
    for image, question, batched in zip(images, questions, together, strict=True):
        alone = either.ask(image, question, budget, LONG)
        assert batched.token_ids == alone.token_ids
        assert (batched.text, batched.finish_reason) == (alone.text, alone.finish_reason)
        np.testing.assert_allclose(batched.logprobs, alone.logprobs, rtol=0, atol=1e-3)


def test_a_stop_text_across_tokens_is_never_shown(
    either: VLM, seen: SeenImage, whole: Answer
) -> None:
    stream = either.stream(seen, QUESTION, generation=LONG)
    borders = list(accumulate(map(len, stream)))
    text = "".join(either.stream(seen, QUESTION, generation=LONG))
    border = borders[len(borders) // 2]
    stop = text[border - 1 : border + 1]
    config = replace(LONG, stop=("nowhere in it", stop))
    stopped = either.stream(seen, QUESTION, generation=config)
    assert "".join(stopped) == text[: text.index(stop)]
    assert stopped.answer is not None
    assert stopped.answer.finish_reason == "stop_string"
    assert stopped.answer.text == text[: text.index(stop)].strip()
    count = len(stopped.answer.token_ids)
    assert count < len(whole.token_ids)
    assert stopped.answer.token_ids == whole.token_ids[:count]
    (batched,) = either.ask_batch([seen], [QUESTION], generation=config)
    assert batched.token_ids == stopped.answer.token_ids


def check_cut(either: VLM, seen: SeenImage, cut: Answer | None, text: str, whole: Answer) -> None:
    """What was left of an answer, and that the same question gets the whole one next."""
    assert cut is not None
    assert cut.finish_reason == "cancelled"
    assert cut.text == text.strip()
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert 0 < len(cut.token_ids) == len(cut.logprobs) < len(whole.token_ids)
    again = either.ask(seen, QUESTION, generation=LONG)
    assert (again.token_ids, again.text) == (whole.token_ids, whole.text)


def test_cancelling(either: VLM, seen: SeenImage, whole: Answer) -> None:
    stream = either.stream(seen, QUESTION, generation=LONG)
    pieces = []
    for piece in stream:
        pieces.append(piece)
        if len(pieces) == 2:
            stream.cancel()
    assert len(pieces) == 2
    check_cut(either, seen, stream.answer, "".join(pieces), whole)
    stream.cancel()
    assert list(stream) == []


def test_cancelling_before_the_first_token(either: VLM, seen: SeenImage) -> None:
    stream = either.stream(seen, QUESTION, generation=LONG)
    stream.cancel()
    assert list(stream) == []
    assert stream.answer is None


def test_leaving_the_loop(either: VLM, seen: SeenImage, whole: Answer) -> None:
    stream = either.stream(seen, QUESTION, generation=LONG)
    for piece in stream:
        first = piece
        break
    check_cut(either, seen, stream.answer, first, whole)
    stream = either.stream(seen, QUESTION, generation=LONG)
    pieces = iter(stream)
    first = next(pieces)
    pieces.close()
    check_cut(either, seen, stream.answer, first, whole)


def read(stream: AnswerStream, pieces: list[str], error: BaseException | None = None) -> None:
    """Takes the pieces, and raises the error behind the first."""
    for piece in stream:
        pieces.append(piece)
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), FeatureError("NaN in logits")])
def test_an_interrupt_in_the_model_or_in_the_loop(
    error: BaseException, either: VLM, seen: SeenImage, whole: Answer
) -> None:
    model: Any = Failing(either.answerer.model, error)
    failing = VLM(either.front_end, replace(either.answerer, model=model))
    pieces: list[str] = []
    stream = failing.stream(seen, QUESTION, generation=LONG)
    with pytest.raises(type(error)):
        read(stream, pieces)
    check_cut(either, seen, stream.answer, "".join(pieces), whole)
    again = failing.ask(seen, QUESTION, generation=LONG)
    assert again.token_ids == whole.token_ids, "the one that was interrupted goes on, too"

    pieces.clear()
    stream = either.stream(seen, QUESTION, generation=LONG)
    with pytest.raises(type(error)):
        read(stream, pieces, error)
    check_cut(either, seen, stream.answer, "".join(pieces), whole)


class Clock:
    """Goes on only where something takes time."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Slow:
    """A language model that takes 2 s to read a prompt and 1 s for each further token."""

    def __init__(self, model: Any, clock: Clock) -> None:
        self.model, self.clock, self.decoded = model, clock, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def prefill(self, *arguments: Any) -> Any:
        self.clock.now += 2
        return self.model.prefill(*arguments)

    def decode(self, *arguments: Any) -> Any:
        self.clock.now += 1
        self.decoded += 1
        return self.model.decode(*arguments)


def test_the_times_are_the_models_and_not_the_readers(
    vlm: VLM, seen: SeenImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    for module in ("answering", "latency", "front_end"):
        monkeypatch.setattr(f"paddle_recomp.vlm.{module}.time", clock)
    model: Any = Slow(vlm.answerer.model, clock)
    slow = VLM(vlm.front_end, replace(vlm.answerer, model=model))

    def times(answer: Answer | None) -> tuple[float, float, float]:
        assert answer is not None
        timing = answer.timing
        return timing.prefill, timing.decode, timing.first_token

    def read_slowly(stream: AnswerStream, most: int = 100) -> Answer | None:
        for number, _ in enumerate(stream, start=1):
            clock.now += 50
            if number == most:
                break
        return stream.answer

    alone = slow.ask(seen, QUESTION, generation=LONG)
    assert model.decoded >= 8
    assert times(alone) == (2, model.decoded, 2)
    assert times(read_slowly(slow.stream(seen, QUESTION, generation=LONG))) == times(alone)
    assert times(read_slowly(slow.chat(seen).stream(QUESTION, None, LONG))) == times(alone)
    assert times(slow.ask_batch([seen], [QUESTION], generation=LONG)[0]) == times(alone)
    model.decoded = 0
    cut = read_slowly(slow.stream(seen, QUESTION, generation=LONG), most=2)
    assert times(cut) == (2, model.decoded, 2)


def test_the_document_shows_what_there_is(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its program runs, and its table has every option with its default."""
    document = DOCUMENT.read_text(encoding="utf-8")
    program, *_ = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    exec(program.replace("paddle_recomp/assets/pictures/scene_0.png", str(picture)), {})
    assert re.search(r"(stop|length|stop_string) \(-", capsys.readouterr().out)
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([^ |]+) \|", document, re.MULTILINE))
    short = {"None": "none", "()": "none", "0.0": "0", "1.0": "1"}
    defaults = {name: str(value) for name, value in asdict(GenerationConfig()).items()}
    assert rows == {name: short.get(value, value) for name, value in defaults.items()}
