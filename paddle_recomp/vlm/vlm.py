"""The runner: a picture is seen once, and every question is answered from the tokens it needs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.llm.base import LanguageModel
from paddle_recomp.llm.draft import Draft
from paddle_recomp.llm.generation import generate
from paddle_recomp.llm.splicing import check_room, splice
from paddle_recomp.preprocess import LanguageTokenizer, Turn, check_question, render
from paddle_recomp.types import Answer, AnswerStream, Timing, num_patches, stage_counts
from paddle_recomp.vlm.conversation import (
    DEFAULT_MODE,
    Conversation,
    Mode,
    check_mode,
)
from paddle_recomp.vlm.front_end import (
    ImageLike,
    Images,
    SeenImage,
    VisualFrontEnd,
    VisualPrompt,
    listed,
)
from paddle_recomp.vlm.latency import Deadline, Latency, known_latency


class VLM:
    """A vision-language model that recompresses its pictures for every question.

    Where a method takes `images`, that is one picture, several, or none: an empty sequence. They
    stand in front of the question, unless it has a place, `<image>`, for each of them.

    Threads may share one: each gets what it gets alone. A conversation takes one question at a
    time."""

    def __init__(
        self,
        front_end: VisualFrontEnd,
        language_model: LanguageModel,
        tokenizer: LanguageTokenizer,
        latency_file: Path | None = None,
    ) -> None:
        """`latency_file` is where `latency` is kept once it was measured."""
        self.front_end = front_end
        self.language_model = language_model
        self.tokenizer = tokenizer
        self.latency_file = latency_file
        self._latency: Latency | None = None
        self._measuring = threading.Lock()

    def see(self, image: ImageLike) -> SeenImage:
        """Runs the vision tower on a picture, once for all questions.

        Raises: ImageError, FeatureError."""
        return self.front_end.see([image])[0]

    def ask(
        self,
        images: Images,
        question: str,
        budget: TokenBudget | None = None,
        generation: GenerationConfig | None = None,
    ) -> Answer:
        """Answers a question about pictures from the visual tokens that the question needs.

        Raises: ImageError, QuestionError, ConfigError (budget), ContextLengthError."""
        return self.stream(images, question, budget, generation).finish()

    def stream(
        self,
        images: Images,
        question: str,
        budget: TokenBudget | None = None,
        generation: GenerationConfig | None = None,
    ) -> AnswerStream:
        """`ask`, piece by piece. Raises as `ask` does, when the first piece is taken."""
        budget, generation = budget or TokenBudget(), generation or GenerationConfig()
        return AnswerStream(partial(self._answer, images, question, budget, generation))

    def latency(self, on_step: Callable[[int, int], None] = lambda done, total: None) -> Latency:
        """What this model takes on this machine; the first time that takes a while, of which
        `on_step` hears the steps done and their total. Budgets with a `ttft_ms` need it."""
        with self._measuring:
            if self._latency is None:
                self._latency = known_latency(self, self.latency_file, on_step)
            return self._latency

    def chat(self, images: Images, mode: Mode = DEFAULT_MODE) -> Conversation:
        """Begins a conversation about pictures; see `Conversation`.

        Raises: ImageError, FeatureError, ConfigError (mode)."""
        check_mode(mode)
        return Conversation(self, self.front_end.see_all(images), mode)

    def ask_batch(
        self,
        images: Sequence[Images],
        questions: Sequence[str],
        budgets: TokenBudget | Sequence[TokenBudget] | None = None,
        generation: GenerationConfig | None = None,
    ) -> list[Answer]:
        """Answers several questions in one pass, each with its pictures (`images[i]`); the times
        are those of the batch.

        Raises: as `ask`; QuestionError when there are not pictures for each question."""
        seen = [self.front_end.see_all(some) for some in images]
        prompts = self.front_end.compress(seen, questions, budgets or TokenBudget())
        return self.answer(prompts, generation)

    def answer(
        self, prompts: Sequence[VisualPrompt], generation: GenerationConfig | None = None
    ) -> list[Answer]:
        """Answers what `front_end.compress` made, in one pass or one by one, in one pass of the
        language model; the time to the first token is that of both.

        Raises: ContextLengthError."""
        generation = generation or GenerationConfig()
        drafts, marks = self._drafts(len(prompts), generation), [time.perf_counter()]
        embeds = [self._splice(prompt, generation) for prompt in prompts]
        for _ in generate(self.language_model, embeds, drafts, generation):
            marks.append(time.perf_counter())
        answers = []
        for prompt, draft, rows in zip(prompts, drafts, embeds, strict=True):
            start = marks[0] - prompt.timing.text - prompt.timing.compress
            answers.append(self._finish(prompt, draft, len(rows), 0.0, start, marks))
        return answers

    def _answer(
        self,
        images: Images,
        question: str,
        budget: TokenBudget,
        generation: GenerationConfig,
        stream: AnswerStream,
    ) -> Iterator[str]:
        given = listed(images)
        # Cheap checks first: the vision tower is the expensive part.
        check_question(question, len(given))
        deadline, words = Deadline(budget, self.latency), partial(self._words, question, len(given))
        deadline.check(words, len(given), sum(not isinstance(one, SeenImage) for one in given))
        seen = self.front_end.see_all(given)
        vision = sum(s.seconds for s, image in zip(seen, given, strict=True) if s is not image)
        (prompt,) = self.front_end.compress([seen], [question], deadline.budget(words, seen))
        embeds = self._splice(prompt, generation)
        model = self.language_model
        yield from self.speak(stream, model, prompt, embeds, generation, deadline.start, vision)
        deadline.note(stream.answer)

    def speak(
        self,
        stream: AnswerStream,
        model: LanguageModel,
        prompt: VisualPrompt,
        embeds: np.ndarray,
        generation: GenerationConfig,
        start: float,
        vision: float = 0.0,
    ) -> Iterator[str]:
        """The pieces of an answer to the embeddings [T, D] that a prompt became; leaves the answer
        in the stream. `start` is the time of the question, `vision` the part of it that seeing
        took.

        Raises: ContextLengthError."""
        if stream.cancelled:
            return
        (draft,), marks = self._drafts(1, generation), [time.perf_counter()]
        try:
            for (piece,) in generate(model, [embeds], [draft], generation):
                marks.append(time.perf_counter())
                if piece:
                    yield piece
                if stream.cancelled:
                    return
        finally:
            if len(marks) > 1:
                stream.answer = self._finish(prompt, draft, len(embeds), vision, start, marks)

    def _drafts(self, count: int, generation: GenerationConfig) -> list[Draft]:
        ends = self.tokenizer.eos_token_ids
        return [Draft(self.tokenizer.stream(), ends, generation) for _ in range(count)]

    def _words(self, question: str, num_images: int) -> int:
        """Positions of a prompt besides its visual tokens."""
        prompt = render(self.front_end.template, [Turn(question, images=num_images)])
        return len(self.tokenizer.encode(prompt)) - num_images

    def _splice(self, prompt: VisualPrompt, generation: GenerationConfig) -> np.ndarray:
        """The embeddings [T, D] of a prompt, visual tokens where it names a picture."""
        ids = self.tokenizer.encode(prompt.text)
        blocks = [one.tokens[0] for one in prompt.compressed]
        check_room(self.language_model, ids, blocks, generation.max_new_tokens)
        return splice(self.language_model, ids, blocks)

    def _finish(
        self,
        prompt: VisualPrompt,
        draft: Draft,
        prefilled: int,
        vision: float,
        start: float,
        marks: list[float],
    ) -> Answer:
        """`marks` are the times when the prompt was ready and when each token was."""
        timing: Timing = replace(
            prompt.timing,
            vision=vision,
            prefill=marks[1] - marks[0],
            decode=marks[-1] - marks[1],
            first_token=marks[1] - start,
        )
        return Answer(
            text=draft.text.strip(),
            token_ids=tuple(draft.token_ids),
            stage_counts=stage_counts(self.front_end.stages, *prompt.compressed),
            num_patches=num_patches(*prompt.compressed),
            timing=timing,
            compressed=prompt.compressed,
            finish_reason=draft.finish_reason or "cancelled",
            logprobs=tuple(draft.logprobs),
            stages=self.front_end.stages,
            prefilled=prefilled,
        )
