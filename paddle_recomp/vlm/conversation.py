"""Conversations: pictures are seen once, and every further question decides which of their visual
tokens the language model gets to see."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, get_args

import numpy as np

from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import ConfigError, StateError
from paddle_recomp.llm.base import LanguageModel, State
from paddle_recomp.llm.continued import Continued
from paddle_recomp.llm.splicing import check_room, num_positions, splice
from paddle_recomp.preprocess import (
    IMAGE_TOKEN,
    LanguageTokenizer,
    Turn,
    check_question,
    render,
    spoken,
)
from paddle_recomp.types import Answer, AnswerStream, Compressed, Timing
from paddle_recomp.vlm.front_end import SeenImage, VisualFrontEnd, VisualPrompt
from paddle_recomp.vlm.latency import Deadline, Latency

Mode = Literal["recompress", "append", "keep"]
DEFAULT_MODE: Mode = "append"


class Speaker(Protocol):
    """What a conversation needs of a `VLM`."""

    front_end: VisualFrontEnd
    language_model: LanguageModel
    tokenizer: LanguageTokenizer

    def latency(self) -> Latency:
        """See `VLM.latency`."""
        ...

    def speak(
        self,
        stream: AnswerStream,
        model: LanguageModel,
        prompt: VisualPrompt,
        embeds: np.ndarray,
        generation: GenerationConfig,
        start: float,
    ) -> Iterator[str]:
        """See `VLM.speak`."""
        ...


@dataclass(frozen=True)
class _Past:
    """A conversation between two questions."""

    turns: tuple[Turn, ...] = ()
    ids: tuple[int, ...] = ()
    """What the language model has read and said, IMAGE_TOKEN for each block."""
    blocks: tuple[np.ndarray, ...] = ()
    """Visual tokens [M, D], in their order in the conversation."""
    patches: tuple[frozenset[int], ...] = ()
    """Of each picture those that are in the blocks as tokens of their own."""
    prompt: VisualPrompt | None = None
    """Of the last question."""
    state: State | None = None
    """The KV cache, where it can be continued."""


class Conversation:
    """Questions about one or more pictures, or none, each with the dialogue so far in front of it.

    - `recompress`: the pictures' tokens at the beginning of the dialogue are chosen anew for the
      question, and the language model reads everything again.
    - `append`: the KV cache stays. In front of the question stand only the patches that it
      recovers and that no earlier question brought in; the tokens that sum up other patches come
      with the first question alone, as they hold nothing of their own.
    - `keep`: the KV cache stays, with the tokens of the first question: for comparison.

    A question that ends in an error, is cancelled, or whose stream is not read to its end, was
    never asked: the conversation is what it was before. Its cache is, too, unless the language
    model itself was interrupted or failed; then the next question reads the dialogue again."""

    def __init__(
        self, speaker: Speaker, images: Sequence[SeenImage], mode: Mode = DEFAULT_MODE
    ) -> None:
        """Raises: ConfigError for an unknown mode."""
        check_mode(mode)
        self.images, self.mode = tuple(images), mode
        self._speaker = speaker
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
        mode `keep` for the first one; `Answer.prefilled` counts what was not in the KV cache. Only
        the first question may have places, `<image>`, for the pictures.

        Raises: QuestionError, ConfigError (budget), ContextLengthError; StateError when another
        question was asked before the answer ended."""
        return self.stream(question, budget, generation).finish()

    def stream(
        self,
        question: str,
        budget: TokenBudget | None = None,
        generation: GenerationConfig | None = None,
    ) -> AnswerStream:
        """`ask`, piece by piece. Raises as `ask` does, when a piece is taken."""
        budget, generation = budget or TokenBudget(), generation or GenerationConfig()
        return AnswerStream(partial(self._answer, question, budget, generation))

    def _answer(
        self,
        question: str,
        budget: TokenBudget,
        generation: GenerationConfig,
        stream: AnswerStream,
    ) -> Iterator[str]:
        deadline = Deadline(budget, self._speaker.latency)
        before, model = self._past, self._speaker.language_model
        words = partial(self._words, before, question)
        deadline.check(words, len(self.images))
        after = self._asked(before, question, deadline.budget(words, self.images))
        assert after.prompt is not None
        check_room(model, after.ids, after.blocks, generation.max_new_tokens)
        embeds = splice(model, after.ids, after.blocks)

        # From here on the cache is this question's; one that is asked meanwhile has none.
        mine = replace(before, state=None)
        self._pass(before, mine)
        in_cache = 0 if after.state is None else int(after.state.lengths[0])
        speaking = Continued(model, after.state)
        rest = embeds[in_cache:]
        answer: Answer | None = None
        try:
            yield from self._speaker.speak(
                stream, speaking, after.prompt, rest, generation, deadline.start
            )
            deadline.note(stream.answer)
            if stream.answer is not None and stream.answer.finish_reason != "cancelled":
                answer = stream.answer
        finally:
            if answer is None:
                state = self._up_to(num_positions(before.ids, before.blocks), speaking.state)
                with suppress(StateError):
                    self._pass(mine, replace(before, state=state))
        if answer is not None:
            self._pass(mine, self._answered(after, answer, speaking.state))

    def _pass(self, old: _Past, new: _Past) -> None:
        """Raises: StateError when the conversation is no longer what it was."""
        with self._turn:
            if self._past is not old:
                raise StateError("another question was asked before this answer ended")
            self._past = new

    def _words(self, past: _Past, question: str) -> int:
        """Positions to be read for a question besides the visual tokens that it brings in."""
        again = self.mode == "recompress"
        places = 0 if past.turns and again else len(self.images)
        turns = (*past.turns, Turn(question, images=places))
        whole = self._encode(render(self._speaker.front_end.template, turns))
        words = len(whole) - whole.count(IMAGE_TOKEN)
        if again:
            return words
        in_cache = 0 if past.state is None else int(past.state.lengths[0])
        return words + sum(len(block) for block in past.blocks) - in_cache

    def _asked(self, past: _Past, question: str, budget: TokenBudget) -> _Past:
        """The conversation with another question in it."""
        first = not past.turns
        question = check_question(question, len(self.images) if first else 0)
        if past.prompt is not None and self.mode == "keep":
            prompt = replace(past.prompt, timing=Timing())
        else:
            front_end = self._speaker.front_end
            (prompt,) = front_end.compress([self.images], [question], [budget])
        blocks = tuple(one.tokens[0] for one in prompt.compressed)
        if first:
            added = blocks
        elif self.mode == "append":
            added = _recovered(past.patches, prompt.compressed)
        else:
            added = ()
        turns = (*past.turns, Turn(question, images=len(added)))
        whole = self._encode(render(self._speaker.front_end.template, turns))
        if first or self.mode == "recompress":
            nothing = (frozenset[int](),) * len(blocks)
            return _Past(turns, whole, blocks, nothing, prompt)
        return _Past(
            turns=turns,
            ids=(*past.ids, *self._continuation(past.turns, whole)),
            blocks=(*past.blocks, *added),
            patches=past.patches,
            prompt=prompt,
            state=past.state,
        )

    def _answered(self, asked: _Past, answer: Answer, state: State | None) -> _Past:
        """The conversation with its last question answered."""
        turns = (*asked.turns[:-1], replace(asked.turns[-1], answer=answer.text))
        said: Sequence[int] = answer.token_ids
        if answer.finish_reason == "stop_string":  # Its tokens are no part of the conversation.
            template = self._speaker.front_end.template
            unanswered, whole = render(template, asked.turns), spoken(template, turns)
            said = _behind(self._encode(unanswered), self._encode(whole))
        read = num_positions(asked.ids, asked.blocks) + _num_same(said, answer.token_ids)
        assert asked.prompt is not None
        patches = tuple(
            known | _kept(one)
            for known, one in zip(asked.patches, asked.prompt.compressed, strict=True)
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
        return self._speaker.language_model.rewind(state, np.array([length]))

    def _continuation(self, turns: Sequence[Turn], whole: Sequence[int]) -> Sequence[int]:
        """The ids of a dialogue behind its last answer but one.

        The answer itself stays as the model gave it, which may be other ids than the tokenizer's
        for the same text."""
        return _behind(self._encode(spoken(self._speaker.front_end.template, turns)), whole)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._speaker.tokenizer.encode(text))


def check_mode(mode: str) -> Mode:
    """A mode by its name. Raises: ConfigError for an unknown one."""
    for known in get_args(Mode):
        if mode == known:
            return known
    raise ConfigError(f"unknown mode {mode!r}; known: {', '.join(get_args(Mode))}")


def _behind(known: Sequence[int], whole: Sequence[int]) -> Sequence[int]:
    """What of the whole is not what is known of its beginning."""
    return whole[_num_same(known, whole) :]


def _num_same(first: Sequence[int], second: Sequence[int]) -> int:
    """How many numbers both begin with."""
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return same


def _kept(compressed: Compressed) -> frozenset[int]:
    """The patches that have a token of their own."""
    return frozenset(int(patch) for patch in compressed.index[0] if patch >= 0)


def _recovered(
    patches: Sequence[frozenset[int]], pictures: Sequence[Compressed]
) -> tuple[np.ndarray, ...]:
    """Of each picture the tokens [M, D] of kept patches that are not among these; a picture that
    has none is left out."""
    blocks = []
    for known, one in zip(patches, pictures, strict=True):
        new = np.isin(one.index[0], list(_kept(one) - known))
        blocks += [one.tokens[0][new]] if new.any() else []
    return tuple(blocks)
