"""Conversations: what the language model is given, whatever runs it, and that a question which
fails was never asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from export.decoder.write import write_decoder
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import (
    ConfigError,
    ContextLengthError,
    FeatureError,
    QuestionError,
    StateError,
)
from paddle_recomp.llm.base import LanguageModel, State
from paddle_recomp.llm.onnx_decoder import OnnxDecoder
from paddle_recomp.preprocess import (
    IMAGE_TOKEN,
    TEMPLATES,
    ChatTemplate,
    LanguageTokenizer,
    Prompt,
    Turn,
    render,
)
from paddle_recomp.types import Answer, VisualTokens
from paddle_recomp.vlm.answering import Answerer
from paddle_recomp.vlm.conversation import Conversation, Mode
from paddle_recomp.vlm.demo import demo_pictures
from paddle_recomp.vlm.front_end import SeenImage
from paddle_recomp.vlm.loading import find_checkpoint
from paddle_recomp.vlm.vlm import VLM
from tests.llm.conftest import poison
from tests.threads import at_once
from tests.vlm.recording import Recording, embeddings

QUESTIONS = ["what digit is red?", "where is the circle?", "what shape is blue?", "how many?"]
MODES: tuple[Mode, ...] = ("recompress", "append", "keep")
BUDGET = TokenBudget(tokens=20)
SHORT = GenerationConfig(max_new_tokens=8)


@pytest.fixture(scope="module", params=["paddlenlp", "onnx"])
def model(
    request: pytest.FixtureRequest, vlm: VLM, tmp_path_factory: pytest.TempPathFactory
) -> LanguageModel:
    if request.param == "paddlenlp":
        return vlm.answerer.model
    folder = tmp_path_factory.mktemp("decoder")
    return OnnxDecoder(folder, write_decoder(find_checkpoint("demo"), folder, "fp32", {}))


@pytest.fixture
def recording(vlm: VLM, model: LanguageModel) -> tuple[VLM, Recording]:
    heard = Recording(model)
    return VLM(vlm.front_end, replace(vlm.answerer, model=heard)), heard


@pytest.fixture(scope="module")
def seen(vlm: VLM) -> SeenImage:
    return vlm.see(next(iter(demo_pictures())))


def compressed(vlm: VLM, seen: SeenImage, question: str) -> VisualTokens:
    return vlm.front_end.compress([seen], [question], BUDGET)[0].compressed[0]


def blocks_of(
    vlm: VLM, seen: SeenImage, mode: Mode, questions: list[str]
) -> tuple[list[int], list[np.ndarray]]:
    """What the definition of the mode says: pictures per turn, and the tokens of each."""
    everything = [compressed(vlm, seen, question) for question in questions]
    rest = [0] * (len(questions) - 1)
    if mode == "recompress":
        return [1, *rest], [everything[-1].embeds[0]]
    if mode == "keep":
        return [1, *rest], [everything[0].embeds[0]]
    images, blocks, have = [1], [everything[0].embeds[0]], set(everything[0].index[0])
    for one in everything[1:]:
        new = [i for i, patch in enumerate(one.index[0]) if patch >= 0 and patch not in have]
        have |= set(one.index[0])
        images.append(int(bool(new)))
        blocks += [one.embeds[0][new]] if new else []
    return images, blocks


@pytest.mark.parametrize("mode", MODES)
def test_what_is_read_is_one_prompt(
    mode: Mode, recording: tuple[VLM, Recording], seen: SeenImage
) -> None:
    """Behind the cache or not: the concatenated embeddings, and the logits of one prefill."""
    vlm, heard = recording
    chat = vlm.chat(seen, mode)
    given: list[str] = []
    for number, question in enumerate(QUESTIONS, start=1):
        before = len(heard.logits)
        answer = chat.ask(question, BUDGET, SHORT)
        images, blocks = blocks_of(vlm, seen, mode, QUESTIONS[:number])
        turns = [
            Turn(asked, said, count)
            for asked, said, count in zip(QUESTIONS, [*given, None], images, strict=False)
        ]
        whole = embeddings(vlm, turns, blocks)
        steps = len(heard.logits) - before - 1
        read = np.concatenate(heard.read)
        np.testing.assert_array_equal(read[: len(read) - steps], whole)
        logits, _ = heard.model.prefill(whole[None], np.array([len(whole)]))
        np.testing.assert_allclose(heard.logits[before], logits, rtol=0, atol=1e-3)
        assert answer.prefilled == len(heard.read[-1 - steps])
        assert chat.num_visual_tokens == sum(map(len, blocks))
        given.append(answer.text)
    assert [turn.answer for turn in chat.turns] == given
    if mode == "append":
        assert sum(images) >= 3, "further questions recover patches"


def test_append_reads_little(recording: tuple[VLM, Recording], seen: SeenImage) -> None:
    vlm, _ = recording
    chats = {mode: vlm.chat(seen, mode) for mode in MODES}
    first, *later = (
        {mode: chat.ask(question, BUDGET, SHORT).prefilled for mode, chat in chats.items()}
        for question in QUESTIONS
    )
    assert len(set(first.values())) == 1
    for counts in later:
        assert counts["keep"] <= counts["append"] < counts["recompress"]
    # Nothing is left to recover of a picture that is there as a whole.
    chat = vlm.chat(seen, "append")
    full = TokenBudget(full=True)
    assert (
        chat.ask(QUESTIONS[0], full, SHORT).prefilled
        > 256
        > 40
        > chat.ask(QUESTIONS[1], full, SHORT).prefilled
    )
    assert chat.num_visual_tokens == 256


def test_the_same_question_recovers_nothing_twice(vlm: VLM, seen: SeenImage) -> None:
    chat = vlm.chat(seen, "append")
    for _ in range(2):
        chat.ask(QUESTIONS[0], BUDGET, GenerationConfig(max_new_tokens=4))
    assert chat.num_visual_tokens == 20
    assert [turn.images for turn in chat.turns] == [1, 0]


@pytest.mark.parametrize("mode", MODES)
def test_a_first_question_is_an_ask(mode: Mode, vlm: VLM, seen: SeenImage) -> None:
    answer, alone = (
        vlm.chat(seen, mode).ask(QUESTIONS[0], BUDGET),
        vlm.ask(seen, QUESTIONS[0], BUDGET),
    )
    assert (answer.token_ids, answer.prefilled) == (alone.token_ids, alone.prefilled)


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_that_was_cut_off(
    mode: Mode, recording: tuple[VLM, Recording], seen: SeenImage
) -> None:
    """Its last token was given, but never read by the model: the next turn reads it."""
    vlm, heard = recording
    chat = vlm.chat(seen, mode)
    answer = chat.ask(QUESTIONS[0], BUDGET, GenerationConfig(max_new_tokens=1))
    assert answer.token_ids, "no end yet"
    chat.ask(QUESTIONS[1], BUDGET, GenerationConfig(max_new_tokens=1))
    images, blocks = blocks_of(vlm, seen, mode, QUESTIONS[:2])
    turns = [Turn(QUESTIONS[0], answer.text, 1), Turn(QUESTIONS[1], None, images[1])]
    np.testing.assert_array_equal(np.concatenate(heard.read), embeddings(vlm, turns, blocks))


def interrupt_by_closing(chat: Conversation, heard: Recording) -> None:
    pieces = iter(chat.stream(QUESTIONS[2], BUDGET, SHORT))
    assert next(pieces)


def interrupt_by_cancelling(chat: Conversation, heard: Recording) -> None:
    stream = chat.stream(QUESTIONS[2], BUDGET, SHORT)
    for _ in stream:
        stream.cancel()
    assert stream.answer is not None
    assert stream.answer.finish_reason == "cancelled"


def interrupt_inside_the_model(chat: Conversation, heard: Recording) -> None:
    heard.fails_at = len(heard.logits) + 1
    with pytest.raises(KeyboardInterrupt):
        chat.ask(QUESTIONS[2], BUDGET, SHORT)
    heard.fails_at = None


def interrupt_by_nan(chat: Conversation, heard: Recording) -> None:
    pieces = iter(chat.stream(QUESTIONS[2], BUDGET, SHORT))
    next(pieces)
    assert heard.state is not None
    poison(heard.state)
    with pytest.raises(FeatureError, match="the weights or the KV cache are broken"):
        list(pieces)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("interrupt", "loses_the_cache"),
    [
        (interrupt_by_closing, False),
        (interrupt_by_cancelling, False),
        (interrupt_inside_the_model, True),
        (interrupt_by_nan, True),
    ],
)
def test_an_interrupted_question_was_never_asked(
    mode: Mode,
    interrupt: Callable[[Conversation, Recording], None],
    loses_the_cache: bool,
    recording: tuple[VLM, Recording],
    seen: SeenImage,
) -> None:
    vlm, heard = recording
    chat, other = vlm.chat(seen, mode), vlm.chat(seen, mode)
    for one in (chat, other):
        one.ask(QUESTIONS[0], BUDGET, SHORT)
    interrupt(chat, heard)
    assert chat.turns == other.turns
    after, expected = (one.ask(QUESTIONS[1], BUDGET, SHORT) for one in (chat, other))
    assert after.token_ids == expected.token_ids
    np.testing.assert_allclose(after.logprobs, expected.logprobs, rtol=0, atol=1e-4)
    assert chat._past.ids == other._past.ids
    images, blocks = blocks_of(vlm, seen, mode, QUESTIONS[:2])
    turns = [chat.turns[0], Turn(QUESTIONS[1], None, images[1])]
    whole = len(embeddings(vlm, turns, blocks))
    assert after.prefilled == (whole if loses_the_cache else expected.prefilled)
    third = [one.ask(QUESTIONS[3], BUDGET, SHORT).prefilled for one in (chat, other)]
    assert third[0] == third[1], "and there is one again"


@pytest.mark.parametrize("mode", MODES)
def test_what_cannot_be_asked_changes_nothing(mode: Mode, vlm: VLM, seen: SeenImage) -> None:
    chat, other = vlm.chat(seen, mode), vlm.chat(seen, mode)
    for one in (chat, other):
        one.ask(QUESTIONS[0], BUDGET, SHORT)
    with pytest.raises(ContextLengthError, match="context is 2048"):
        chat.ask("red " * 60, BUDGET, generation=GenerationConfig(max_new_tokens=2000))
    with pytest.raises(QuestionError, match="empty"):
        chat.ask(" ")
    with pytest.raises(ConfigError, match="max_new_tokens"):
        chat.ask(QUESTIONS[1], BUDGET, generation=GenerationConfig(max_new_tokens=0))
    if mode != "keep":
        with pytest.raises(ConfigError, match="256 patches"):
            chat.ask(QUESTIONS[1], TokenBudget(tokens=300))
    assert chat.turns == other.turns
    after, expected = (one.ask(QUESTIONS[1], BUDGET, SHORT) for one in (chat, other))
    assert (after.token_ids, after.prefilled) == (expected.token_ids, expected.prefilled)


def test_two_answers_at_once(vlm: VLM, seen: SeenImage) -> None:
    chat = vlm.chat(seen, "append")
    first = iter(chat.stream(QUESTIONS[0], BUDGET, SHORT))
    next(first)
    answer = chat.ask(QUESTIONS[1], BUDGET, SHORT)
    with pytest.raises(StateError, match="another question"):
        list(first)
    assert [turn.answer for turn in chat.turns] == [answer.text]


def test_two_threads_ask_one_conversation(
    recording: tuple[VLM, Recording], seen: SeenImage
) -> None:
    """At least one is answered, whoever is not is told so, and the dialogue is that of those who
    were."""
    vlm, _ = recording

    for _ in range(6):
        chat = vlm.chat(seen, "append")
        chat.ask(QUESTIONS[0], BUDGET, SHORT)

        def ask(thread: int, chat: Conversation = chat) -> Answer | StateError:
            try:
                return chat.ask(QUESTIONS[1 + thread], BUDGET, SHORT)
            except StateError as error:
                return error

        ends = at_once(2, ask)
        refused = {str(one) for one in ends if isinstance(one, StateError)}
        assert refused <= {"another question was asked before this answer ended"}
        answered = sorted(one.text for one in ends if isinstance(one, Answer))
        assert answered
        assert sorted(str(turn.answer) for turn in chat.turns[1:]) == answered
        alone = vlm.chat(seen, "append")
        for turn in chat.turns:
            alone.ask(turn.question, BUDGET, SHORT)
        found, expected = (one.ask(QUESTIONS[3], BUDGET, SHORT) for one in (chat, alone))
        assert (found.token_ids, chat._past.ids) == (expected.token_ids, alone._past.ids)


def test_unknown_mode(vlm: VLM, seen: SeenImage) -> None:
    with pytest.raises(ConfigError, match="known: recompress, append, keep"):
        vlm.chat(seen, "forget")  # type: ignore[arg-type]


@dataclass
class Scripted:
    """A language model that says what it was told to."""

    answers: list[list[int]]
    end: int
    width: int
    vocabulary: int
    context: int = 4096

    def embed(self, ids: np.ndarray) -> np.ndarray:
        return np.repeat(ids[:, None], self.width, axis=1).astype(np.float32)

    def prefill(
        self, embeds: np.ndarray, lengths: np.ndarray, capacity: int | None = None
    ) -> tuple[np.ndarray, State]:
        return self.extend(embeds, lengths, State(np.zeros_like(lengths), self, None))

    def extend(
        self, embeds: np.ndarray, lengths: np.ndarray, state: State
    ) -> tuple[np.ndarray, State]:
        state.spend(self)
        self.saying = [*self.answers.pop(0), self.end]
        return self._next(state.lengths + lengths)

    def decode(self, ids: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        state.spend(self)
        return self._next(state.lengths + 1)

    def rewind(self, state: State, lengths: np.ndarray) -> State:
        assert (lengths < state.lengths).all()
        return State(lengths, self, state.spend(self))

    def _next(self, lengths: np.ndarray) -> tuple[np.ndarray, State]:
        logits = np.zeros((1, self.vocabulary), dtype=np.float32)
        logits[0, self.saying.pop(0)] = 1
        return logits, State(lengths, self, None)


def answer_ids(
    words: LanguageTokenizer, text: str, template: ChatTemplate = TEMPLATES["llava_hf"]
) -> list[int]:
    """The tokenizer's ids of an answer, behind the text that awaits it."""
    before = Prompt.of_template(template.after_question)
    whole = before + Prompt.of_template(template.before_answer) + Prompt.said(text)
    return words.encode(whole)[len(words.encode(before)) :]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("said", [["red", "top left", "3"], ["", "a", "blue"], ["red", "", ""]])
def test_text_is_that_of_the_whole_dialogue(
    name: str, said: list[str], vlm: VLM, seen: SeenImage
) -> None:
    """With every template, as long as answers come in the tokenizer's own ids."""
    words = vlm.answerer.tokenizer
    template = TEMPLATES[name]
    answers = [answer_ids(words, one, template) if one else [] for one in said]
    script = Scripted([list(one) for one in answers], words.eos_token_ids[0], 160, words.vocab_size)
    chat = VLM(vlm.front_end, Answerer(script, words, template)).chat(seen, "append")
    for i, question in enumerate(QUESTIONS[:3]):
        answer = chat.ask(question, BUDGET, SHORT)
        assert answer.text == said[i]
        unanswered = [*chat.turns[:-1], replace(chat.turns[-1], answer=None)]
        ids = tuple(words.encode(render(template, unanswered)))
        assert chat._past.ids == (*ids, *answers[i])


def test_an_answer_in_other_ids_stays_as_it_was_given(vlm: VLM, seen: SeenImage) -> None:
    """Letter by letter instead of whole words: the dialogue goes on behind it all the same."""
    words = vlm.answerer.tokenizer
    whole = answer_ids(words, "red")
    letters = [*answer_ids(words, "r"), *words.encode(Prompt.said("xe"))[-1:]]
    script = Scripted([letters, whole], words.eos_token_ids[0], 160, words.vocab_size)
    chat = VLM(vlm.front_end, replace(vlm.answerer, model=script)).chat(seen, "keep")
    first = chat.ask(QUESTIONS[0], BUDGET, SHORT)
    before = chat._past.ids
    chat.ask(QUESTIONS[1], BUDGET, SHORT)
    said = words.decode(letters).strip()
    assert first.text == said
    canonical = words.encode(render(vlm.answerer.template, chat.turns[:1]).rstrip())
    dialogue = words.encode(render(vlm.answerer.template, [chat.turns[0], Turn(QUESTIONS[1])]))
    assert chat._past.ids == (*before, *dialogue[len(canonical) :], *whole)


@pytest.mark.parametrize("mode", ["recompress", "append", "keep"])
@pytest.mark.parametrize("said", ["<image>", "red</s>USER:", "<image><image> <pad>"])
def test_a_model_that_spells_control_tokens_spoils_nothing(
    mode: Mode, said: str, vlm: VLM, seen: SeenImage
) -> None:
    """Whoever writes them: they are letters, and the next question has its own pictures alone."""
    words, template = vlm.answerer.tokenizer, vlm.answerer.template
    answers = [answer_ids(words, one) for one in (said, "red")]
    assert IMAGE_TOKEN not in answers[0]
    script = Scripted(answers, words.eos_token_ids[0], 160, words.vocab_size)
    chat = VLM(vlm.front_end, Answerer(script, words, template)).chat(seen, mode)
    assert chat.ask(QUESTIONS[0], BUDGET, GenerationConfig(max_new_tokens=40)).text == said
    question = f"{QUESTIONS[1]} </s> <pad>"
    assert chat.ask(question, BUDGET, SHORT).text == "red"
    blocks = len(chat._past.blocks)
    assert chat._past.ids.count(IMAGE_TOKEN) == blocks
    again = Prompt.said(f"ASSISTANT: {said} USER: {question}")
    assert words.decode(chat._past.ids).count(question) == 1
    assert not set(words.encode(again)[1:]) & set(words.silent_ids)
    first = sum(number in words.silent_ids for number in chat._past.ids)
    assert first == 1  # The beginning of text.


@pytest.mark.parametrize(("stop", "text"), [("left", "red top"), ("top left", "red")])
def test_a_stop_text_is_no_part_of_the_dialogue(
    stop: str, text: str, vlm: VLM, seen: SeenImage
) -> None:
    """The cache goes on behind what was said before it, also where the model has read on."""
    words = vlm.answerer.tokenizer
    said = answer_ids(words, "red top left")
    assert len(said) == 3
    script = Scripted([said, said], words.eos_token_ids[0], 160, words.vocab_size)
    chat = VLM(vlm.front_end, replace(vlm.answerer, model=script)).chat(seen, "keep")
    ending = GenerationConfig(max_new_tokens=8, stop=(stop,))
    assert chat.ask(QUESTIONS[0], BUDGET, ending).text == text
    second = chat.ask(QUESTIONS[1], BUDGET, SHORT)
    turns = [Turn(QUESTIONS[0], text, 1), Turn(QUESTIONS[1])]
    whole = words.encode(render(vlm.answerer.template, turns))
    assert chat._past.ids == (*whole, *said)
    first = words.encode(render(vlm.answerer.template, [Turn(QUESTIONS[0], images=1)]))
    kept = len(first) - 1 + 20 + len(text.split())
    assert second.prefilled == len(whole) - 1 + 20 - kept


def test_a_cancelled_question_was_never_asked(vlm: VLM, seen: SeenImage) -> None:
    chat = vlm.chat(seen, "append")
    stream = chat.stream(QUESTIONS[0], BUDGET, SHORT)
    for _ in stream:
        stream.cancel()
    assert stream.answer is not None
    assert stream.answer.finish_reason == "cancelled"
    assert not chat.turns
    assert chat.ask(QUESTIONS[1], BUDGET, SHORT).text == vlm.ask(seen, QUESTIONS[1], BUDGET).text


def test_the_answer_says_what_was_prefilled(vlm: VLM, seen: SeenImage) -> None:
    answers: list[Answer] = [
        vlm.ask(seen, QUESTIONS[0], BUDGET, GenerationConfig(max_new_tokens=2))
    ]
    answers += vlm.ask_batch([seen], QUESTIONS[:1], BUDGET, GenerationConfig(max_new_tokens=2))
    turn = Turn(QUESTIONS[0], images=1)
    words = vlm.answerer.tokenizer.encode(render(vlm.answerer.template, [turn]))
    assert [one.prefilled for one in answers] == [len(words) - 1 + 20] * 2
