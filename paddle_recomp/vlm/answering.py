"""The language side: a prompt with visual tokens among its words becomes an answer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from paddle_recomp.config import GenerationConfig
from paddle_recomp.errors import ConfigError, ContextLengthError
from paddle_recomp.llm.base import LanguageModel, State
from paddle_recomp.llm.generation import Draft, Generation
from paddle_recomp.preprocess import (
    IMAGE_TOKEN,
    ChatTemplate,
    LanguageTokenizer,
    Prompt,
    Turn,
    render,
    spoken,
)
from paddle_recomp.types import Answer, AnswerStream, num_patches, stage_counts
from paddle_recomp.vlm.front_end import CompressedPictures

T = TypeVar("T")


@dataclass(frozen=True)
class VisualPrompt:
    """A question with the visual tokens that it needs, ready to be answered."""

    prompt: Prompt
    pictures: CompressedPictures


@dataclass(frozen=True, eq=False)
class Answerer:
    """A language model with its tokenizer and its chat template."""

    model: LanguageModel
    tokenizer: LanguageTokenizer
    template: ChatTemplate

    def encode(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """The ids of a conversation up to where the next answer begins, IMAGE_TOKEN for each
        picture.

        Raises: QuestionError as `preprocess.render`."""
        return tuple(self.tokenizer.encode(render(self.template, turns)))

    def encode_spoken(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """The ids of a conversation up to the last word of its last answer.

        Raises: QuestionError as `preprocess.spoken`."""
        return tuple(self.tokenizer.encode(spoken(self.template, turns)))

    def embed_words(self, question: str) -> np.ndarray:
        """The words [W, D] float32 of a question by itself, without places of pictures and without
        a beginning-of-text token, for a compressor that reads them."""
        words = np.array(self.tokenizer.encode_words(question), dtype=np.int64)
        return self.model.embed(words).astype(np.float32)

    def embed(
        self, ids: Sequence[int], blocks: Sequence[np.ndarray], max_new_tokens: int
    ) -> np.ndarray:
        """The embeddings [T, D] of ids with a block of visual tokens [M, D] for each picture.

        Raises: ContextLengthError when there is no room for so long an answer behind them."""
        check_room(self.model, ids, blocks, max_new_tokens)
        return splice(self.model, ids, blocks)

    def embed_prompt(self, prompt: VisualPrompt, max_new_tokens: int) -> np.ndarray:
        """`embed` of a question and its pictures."""
        ids = self.tokenizer.encode(prompt.prompt)
        return self.embed(ids, blocks_of(prompt.pictures), max_new_tokens)

    def generate(
        self, prompts: Sequence[np.ndarray], config: GenerationConfig, state: State | None = None
    ) -> Generation:
        """Answers to embeddings [T_i, D], ready to be generated; see `Generation`."""
        ends = self.tokenizer.eos_token_ids
        drafts = [Draft(self.tokenizer.stream(), ends, config) for _ in prompts]
        return Generation(self.model, prompts, drafts, config, state)

    def answer(self, prompts: Sequence[VisualPrompt], config: GenerationConfig) -> list[Answer]:
        """The answers to prompts, in one pass of the language model. Their time to the first token
        is the time of all steps in front of the language model and of its prefill.

        Raises: ContextLengthError, FeatureError."""
        if not prompts:
            return []
        begin = time.perf_counter()
        embeds = [self.embed_prompt(prompt, config.max_new_tokens) for prompt in prompts]
        generation = self.generate(embeds, config)
        ready = time.perf_counter() - begin
        steps = [seconds for _, seconds in timed(generation)]
        answers = []
        for prompt, draft, rows in zip(prompts, generation.drafts, embeds, strict=True):
            before = prompt.pictures.timing
            until = before.vision + before.text + before.compress + ready
            answers.append(_finished(draft, prompt.pictures, len(rows), until, steps))
        return answers

    def stream(
        self,
        generation: Generation,
        pictures: CompressedPictures,
        start: float,
        stream: AnswerStream,
    ) -> Iterator[str]:
        """The pieces of the one answer that is generated. The answer is left in the stream, whether
        the pieces end by themselves or are cut short. `start` is the time of the question.

        Raises: ContextLengthError, FeatureError."""
        if stream.cancelled:
            return
        (draft,), (prompt,) = generation.drafts, generation.prompts
        until, steps = time.perf_counter() - start, []
        try:
            for (piece,), seconds in timed(generation):
                steps.append(seconds)
                if piece:
                    yield piece
                if stream.cancelled:
                    return
        finally:
            if steps:
                stream.answer = _finished(draft, pictures, len(prompt), until, steps)


def generation_for(generation: GenerationConfig | None) -> GenerationConfig:
    """The configuration, or the default one. Raises: ConfigError for anything that is none."""
    if generation is None:
        return GenerationConfig()
    if not isinstance(generation, GenerationConfig):
        raise ConfigError(
            f"generation is of type {type(generation).__name__}; expected a GenerationConfig"
        )
    return generation


def timed(steps: Iterable[T]) -> Iterator[tuple[T, float]]:
    """Each step with the seconds that it took; those of whoever takes the steps are left out."""
    running = iter(steps)
    while True:
        start = time.perf_counter()
        try:
            step = next(running)
        except StopIteration:
            return
        yield step, time.perf_counter() - start


def blocks_of(pictures: CompressedPictures) -> tuple[np.ndarray, ...]:
    """The visual tokens [M, D] of each picture."""
    return tuple(one.embeds[0] for one in pictures.compressed)


def splice(model: LanguageModel, ids: Sequence[int], blocks: Sequence[np.ndarray]) -> np.ndarray:
    """The embeddings [T, D] float32 of a prompt, with a block of visual tokens [M, D] in place of
    each IMAGE_TOKEN, in order."""
    numbers = np.array(ids, dtype=np.int64)
    (places,) = np.nonzero(numbers == IMAGE_TOKEN)
    words = model.embed(np.delete(numbers, places))
    # The ids in front of a place include the earlier IMAGE_TOKENs, which are no words.
    starts = [0, *(places - np.arange(len(places))), len(words)]
    parts = [words[: starts[1]]]
    for block, begin, end in zip(blocks, starts[1:-1], starts[2:], strict=True):
        parts += [block, words[begin:end]]
    return np.concatenate(parts).astype(np.float32)


def num_positions(ids: Sequence[int], blocks: Sequence[np.ndarray]) -> int:
    """T of `splice`."""
    return len(ids) - len(blocks) + sum(len(block) for block in blocks)


def check_room(
    model: LanguageModel, ids: Sequence[int], blocks: Sequence[np.ndarray], max_new_tokens: int
) -> None:
    """Raises: ContextLengthError when prompt and answer together may exceed the language model's
    context. Its message says how many visual tokens would fit."""
    positions = num_positions(ids, blocks)
    words = len(ids) - len(blocks)
    if positions + max_new_tokens <= model.context:
        return
    room = model.context - words - max_new_tokens
    fits = f"at most {room} visual tokens would fit"
    if room < len(blocks) or not blocks:
        fits = "the text has to be shorter, or the answer"
    raise ContextLengthError(
        f"the prompt has {words} tokens of text and {positions - words} visual tokens, the answer "
        f"may take {max_new_tokens}; the language model's context is {model.context}: {fits}"
    )


def _finished(
    draft: Draft,
    pictures: CompressedPictures,
    prefilled: int,
    until: float,
    steps: Sequence[float],
) -> Answer:
    """`until` are the seconds until the prompt was ready, `steps` those of each token."""
    return Answer(
        text=draft.text.strip(),
        token_ids=tuple(draft.token_ids),
        stage_counts=stage_counts(pictures.stages, *pictures.compressed),
        num_patches=num_patches(*pictures.compressed),
        timing=replace(
            pictures.timing,
            prefill=steps[0],
            decode=sum(steps[1:]),
            first_token=until + steps[0],
        ),
        compressed=pictures.compressed,
        finish_reason=draft.finish_reason or "cancelled",
        logprobs=tuple(draft.logprobs),
        stages=pictures.stages,
        prefilled=prefilled,
    )
