"""Conversations: pictures are seen once, and every further question decides which of their visual
tokens the language model gets to see."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np

from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import ConfigError, StateError
from paddle_recomp.llm.base import State
from paddle_recomp.preprocess import IMAGE_TOKEN, Turn, check_question
from paddle_recomp.types import Answer, AnswerStream, Timing, VisualTokens
from paddle_recomp.vlm.answering import Answerer, blocks_of, generation_for, num_positions
from paddle_recomp.vlm.front_end import CompressedPictures, SeenImage, VisualFrontEnd, budgets_for
from paddle_recomp.vlm.latency import Deadline, Latency, Reading

Mode = Literal["recompress", "append", "keep"]
DEFAULT_MODE: Mode = "append"


@dataclass(frozen=True)
class _Past:
    """A conversation between two questions, or with one that is being answered."""

    turns: tuple[Turn, ...] = ()
    ids: tuple[int, ...] = ()
    """The ids that the language model has read and said, IMAGE_TOKEN for each block."""
    blocks: tuple[np.ndarray, ...] = ()
    """Visual tokens [M, D], in their order in the conversation."""
    patches: tuple[frozenset[int], ...] = ()
    """Of each picture the patches that stand in the blocks as tokens of their own."""
    pictures: CompressedPictures | None = None
    """Compressed for the last question."""
    state: State | None = None
    """The KV cache, where it can be continued."""


class Conversation:
    """Questions about one or more pictures, or none, each with the dialogue so far in front of it.

    - `recompress`: the pictures' tokens at the beginning of the dialogue are chosen again for the
      question, and the language model reads the whole dialogue.
    - `append`: the KV cache stays. In front of the question stand only the patches that it recovers
      and that no earlier question brought in; the tokens that sum up other patches come with the
      first question only, because the dialogue holds those patches already.
    - `keep`: the KV cache stays, with the tokens of the first question: for comparison.

    A question that ends in an error, is cancelled, or whose stream is not read to its end, changes
    nothing: the conversation and its cache go back to their state before it. The cache is lost only
    if the language model itself was interrupted or failed; the next question then reads the
    dialogue again."""

    def __init__(
        self,
        front_end: VisualFrontEnd,
        answerer: Answerer,
        latency: Callable[[], Latency],
        images: Sequence[SeenImage],
        mode: Mode = DEFAULT_MODE,
    ) -> None:
        """`latency` is called when a budget is a time.

        Raises: ConfigError for an unknown mode."""
        check_mode(mode)
        self.images, self.mode = tuple(images), mode
        self._front_end, self._answerer, self._latency = front_end, answerer, latency
        self._past = _Past()
        self._turn = threading.Lock()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The questions with their answers."""
        return self._past.turns

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens in the conversation."""
        return sum(len(block) for block in self._past.blocks)

    def ask(
        self,
        question: str,
        budget: TokenBudget | None = None,
        generation: GenerationConfig | None = None,
    ) -> Answer:
        """Answers the next question. `Answer.compressed` are the pictures compressed for it, in
        mode `keep` for the first one; `Answer.prefilled` counts the positions that were not in the
        KV cache. Only the first question may have places, `<image>`, for the pictures.

        Raises: QuestionError, ConfigError, ContextLengthError; StateError when another
        question was asked before the answer ended."""
        return self.stream(question, budget, generation).finish()

    def stream(
        self,
        question: str,
        budget: TokenBudget | None = None,
        generation: GenerationConfig | None = None,
    ) -> AnswerStream:
        """`ask`, piece by piece. Raises as `ask` does, when a piece is taken."""
        (budget,) = budgets_for(TokenBudget() if budget is None else budget, 1)
        generation = generation_for(generation)
        return AnswerStream(partial(self._stream, question, budget, generation))

    def _stream(
        self,
        question: str,
        budget: TokenBudget,
        generation: GenerationConfig,
        stream: AnswerStream,
    ) -> Iterator[str]:
        deadline, before = Deadline(budget, self._latency), self._past
        reading = partial(self._reading, before, question, generation.max_new_tokens)
        # No budget chooses tokens that are kept.
        images = () if self._keeps(before) else self.images
        deadline.check(reading, len(images))
        asked = self._with_question(before, question, deadline.budget(reading, images))
        assert asked.pictures is not None
        embeds = self._answerer.embed(asked.ids, asked.blocks, generation.max_new_tokens)

        # From here on the cache is this question's; one that is asked meanwhile has none.
        mine = replace(before, state=None)
        self._replace_past(before, mine)
        in_cache = 0 if asked.state is None else int(asked.state.lengths[0])
        running = self._answerer.generate([embeds[in_cache:]], generation, asked.state)
        answer: Answer | None = None
        try:
            yield from self._answerer.stream(running, asked.pictures, deadline.start, stream)
            deadline.note(stream.answer, in_cache)
            if stream.answer is not None and stream.answer.finish_reason != "cancelled":
                answer = stream.answer
        finally:
            if answer is None:
                state = self._up_to(num_positions(before.ids, before.blocks), running.state)
                with suppress(StateError):
                    self._replace_past(mine, replace(before, state=state))
        if answer is not None:
            self._replace_past(mine, self._with_answer(asked, answer, running.state))

    def _replace_past(self, old: _Past, new: _Past) -> None:
        """Raises: StateError when the conversation has changed since."""
        with self._turn:
            if self._past is not old:
                raise StateError("another question was asked before this answer ended")
            self._past = new

    def _keeps(self, past: _Past) -> bool:
        """Whether the next question is answered from the tokens of an earlier one."""
        return self.mode == "keep" and past.pictures is not None

    def _reading(self, past: _Past, question: str, max_new_tokens: int) -> Reading:
        """Besides the visual tokens that a question brings in."""
        again = self.mode == "recompress"
        places = 0 if past.turns and again else len(self.images)
        turns = (*past.turns, Turn(question, images=places))
        whole = self._answerer.encode(turns)
        words = len(whole) - whole.count(IMAGE_TOKEN)
        if not again:
            words += sum(len(block) for block in past.blocks)
        in_cache = 0 if again or past.state is None else int(past.state.lengths[0])
        room = self._answerer.model.context - words - max_new_tokens
        return Reading(words - in_cache, in_cache, room)

    def _with_question(self, past: _Past, question: str, budget: TokenBudget) -> _Past:
        """The conversation with another question in it."""
        first = not past.turns
        question = check_question(question, len(self.images) if first else 0)
        if past.pictures is not None and self._keeps(past):
            pictures = replace(past.pictures, timing=Timing())
        else:
            template = self._answerer.template
            text = self._front_end.text_of(question, len(self.images), template)
            reads_words = self._front_end.reads_words
            words = [self._answerer.embed_words(question)] if reads_words else None
            (pictures,) = self._front_end.compress([self.images], [text], [budget], words)
        blocks = blocks_of(pictures)
        if first:
            added = blocks
        elif self.mode == "append":
            added = _recovered(past.patches, pictures.compressed)
        else:
            added = ()
        turns = (*past.turns, Turn(question, images=len(added)))
        whole = self._answerer.encode(turns)
        if first or self.mode == "recompress":
            nothing = (frozenset[int](),) * len(blocks)
            return _Past(turns, whole, blocks, nothing, pictures)
        return _Past(
            turns=turns,
            ids=(*past.ids, *self._continuation(past.turns, whole)),
            blocks=(*past.blocks, *added),
            patches=past.patches,
            pictures=pictures,
            state=past.state,
        )

    def _with_answer(self, asked: _Past, answer: Answer, state: State | None) -> _Past:
        """The conversation with its last question answered."""
        turns = (*asked.turns[:-1], replace(asked.turns[-1], answer=answer.text))
        said: Sequence[int] = answer.token_ids
        if answer.finish_reason == "stop_string":  # Its tokens are no part of the conversation.
            unanswered, whole = (
                self._answerer.encode(asked.turns),
                self._answerer.encode_spoken(turns),
            )
            said = _behind(unanswered, whole)
        read = num_positions(asked.ids, asked.blocks) + _num_same(said, answer.token_ids)
        assert asked.pictures is not None
        patches = tuple(
            known | _kept(one)
            for known, one in zip(asked.patches, asked.pictures.compressed, strict=True)
        )
        return replace(
            asked,
            turns=turns,
            ids=(*asked.ids, *said),
            patches=patches,
            state=self._up_to(read, state),
        )

    def _up_to(self, length: int, state: State | None) -> State | None:
        """The KV cache of the first positions, where the next question can continue it."""
        if state is None or state.spent or length == 0 or self.mode == "recompress":
            return None
        if int(state.lengths[0]) <= length:
            return state
        return self._answerer.model.rewind(state, np.array([length]))

    def _continuation(self, turns: Sequence[Turn], whole: Sequence[int]) -> Sequence[int]:
        """The ids of a dialogue behind its last answer but one.

        The answer itself stays as the model gave it, which may be other ids than the tokenizer's
        for the same text."""
        return _behind(self._answerer.encode_spoken(turns), whole)


def check_mode(mode: str) -> Mode:
    """A mode by its name. Raises: ConfigError for an unknown one."""
    for known in get_args(Mode):
        if mode == known:
            return known
    raise ConfigError(f"unknown mode {mode!r}; known: {', '.join(get_args(Mode))}")


def _behind(known: Sequence[int], whole: Sequence[int]) -> Sequence[int]:
    """The whole without the beginning that it shares with `known`."""
    return whole[_num_same(known, whole) :]


def _num_same(first: Sequence[int], second: Sequence[int]) -> int:
    """How many numbers both begin with."""
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return same


def _kept(compressed: VisualTokens) -> frozenset[int]:
    """The patches that have a token of their own."""
    return frozenset(int(patch) for patch in compressed.index[0] if patch >= 0)


def _recovered(
    patches: Sequence[frozenset[int]], pictures: Sequence[VisualTokens]
) -> tuple[np.ndarray, ...]:
    """Of each picture the tokens [M, D] of kept patches that are not among these; a picture without
    any is left out."""
    blocks = []
    for known, one in zip(patches, pictures, strict=True):
        new = np.isin(one.index[0], list(_kept(one) - known))
        blocks += [one.embeds[0][new]] if new.any() else []
    return tuple(blocks)
