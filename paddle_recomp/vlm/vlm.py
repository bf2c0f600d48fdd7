"""The runner: a picture is seen once, and every question is answered from the tokens it needs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.preprocess import Turn, check_question, render
from paddle_recomp.types import Answer, AnswerStream
from paddle_recomp.vlm.answering import Answerer, VisualPrompt, generation_for
from paddle_recomp.vlm.conversation import DEFAULT_MODE, Conversation, Mode, check_mode
from paddle_recomp.vlm.front_end import (
    ImageLike,
    Images,
    SeenImage,
    VisualFrontEnd,
    budgets_for,
    listed,
    paired,
    seen_groups,
)
from paddle_recomp.vlm.latency import Deadline, Latency, Reading, known_latency
from paddle_recomp.vlm.model_info import ModelInfo


class VLM:
    """A vision-language model that recompresses its pictures for every question: a front end for
    the pictures, and an answerer for the language.

    Where a method takes `images`, that is one picture, several, or none: an empty sequence. They
    stand in front of the question, unless it has a place, `<image>`, for each of them.

    Threads may share one: each gets the answers that it gets alone. A conversation takes one
    question at a time."""

    def __init__(
        self,
        front_end: VisualFrontEnd,
        answerer: Answerer,
        latency_file: Path | None = None,
        info: ModelInfo | None = None,
    ) -> None:
        """`latency_file` is the file that saves `latency` once it was measured. `info` says what
        was loaded; None where the parts come from elsewhere than `load`."""
        self.front_end = front_end
        self.answerer = answerer
        self.latency_file = latency_file
        self.info = info
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

        Raises: ImageError, QuestionError, ConfigError (budget, generation), ContextLengthError."""
        return self.stream(images, question, budget, generation).finish()

    def stream(
        self,
        images: Images,
        question: str,
        budget: TokenBudget | None = None,
        generation: GenerationConfig | None = None,
    ) -> AnswerStream:
        """`ask`, piece by piece. Raises as `ask` does, when the first piece is taken."""
        (budget,) = budgets_for(TokenBudget() if budget is None else budget, 1)
        generation = generation_for(generation)
        return AnswerStream(partial(self._stream, images, question, budget, generation))

    def ask_batch(
        self,
        images: Sequence[Images],
        questions: Sequence[str],
        budgets: TokenBudget | Sequence[TokenBudget] | None = None,
        generation: GenerationConfig | None = None,
    ) -> list[Answer]:
        """Answers several questions, each about its pictures (`images[i]`), in one pass: of the
        vision tower over all new pictures, of the compressor, and of the language model. The times
        are those of the whole batch, including the vision tower.

        With dynamic INT8 (`--precision int8` without `--quantization static`) the ranges of
        activations span the batch, so the tokens of a picture depend a little on the pictures
        beside it. The ranges of an int8 decoder span the prompts of the batch in the same way. Ask
        one by one if you need the answers that each question gets alone.

        Raises: as `ask`; QuestionError when there are not pictures for each question."""
        images, questions = paired(images, questions)
        groups = [listed(some) for some in images]
        # Cheap checks first: the vision tower is the expensive part.
        generation = generation_for(generation)
        budgets = budgets_for(TokenBudget() if budgets is None else budgets, len(questions))
        for question, some, budget in zip(questions, groups, budgets, strict=True):
            check_question(question, len(some))
            budget.check(len(some))
        seen, seconds = self.front_end.see_all(groups)
        prompts = self._prompts(seen, questions, budgets, seconds)
        return self.answer(prompts, generation)

    def compress(
        self,
        images: Sequence[SeenImage | Sequence[SeenImage]],
        questions: Sequence[str],
        budgets: TokenBudget | Sequence[TokenBudget],
    ) -> list[VisualPrompt]:
        """Compresses the seen picture or pictures of each question for it, all in one pass; see
        `VisualFrontEnd.compress`.

        Raises: QuestionError, ImageError, ConfigError (budget), FeatureError."""
        groups, questions = seen_groups(images, questions)
        return self._prompts(groups, questions, budgets_for(budgets, len(questions)))

    def answer(
        self, prompts: Sequence[VisualPrompt], generation: GenerationConfig | None = None
    ) -> list[Answer]:
        """Answers prompts in one pass of the language model. `compress` may have made them in one
        pass or one by one. The time to the first token includes compressing.

        Raises: ContextLengthError, ConfigError (generation)."""
        return self.answerer.answer(prompts, generation_for(generation))

    def chat(self, images: Images, mode: Mode = DEFAULT_MODE) -> Conversation:
        """Begins a conversation about pictures; see `Conversation`.

        Raises: ImageError, FeatureError, ConfigError (mode)."""
        check_mode(mode)
        (seen,), _ = self.front_end.see_all([images])
        return Conversation(self.front_end, self.answerer, self.latency, seen, mode)

    def latency(self, on_step: Callable[[int, int], None] = lambda done, total: None) -> Latency:
        """The latency of this model on this machine, which budgets with a `ttft_ms` need. The first
        call measures it, which takes a while; `on_step` is given the number of steps done and their
        total."""
        with self._measuring:
            if self._latency is None:
                # A picture from a cache says nothing about the machine.
                measured = VLM(self.front_end.without_cache(), self.answerer)
                self._latency = known_latency(measured, self.latency_file, on_step)
            return self._latency

    def _stream(
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
        deadline = Deadline(budget, self.latency)
        reading = partial(self._reading, question, len(given), generation.max_new_tokens)
        new, in_no_cache = self.front_end.num_new(given), partial(self.front_end.num_unknown, given)
        deadline.check(reading, len(given), new, in_no_cache)
        (seen,), seconds = self.front_end.see_all([given])
        (prompt,) = self._prompts([seen], [question], deadline.budget(reading, seen), seconds)
        embeds = self.answerer.embed_prompt(prompt, generation.max_new_tokens)
        running = self.answerer.generate([embeds], generation)
        yield from self.answerer.stream(running, prompt.pictures, deadline.start, stream)
        deadline.note(stream.answer)

    def _reading(self, question: str, num_images: int, max_new_tokens: int) -> Reading:
        """Of a prompt by itself."""
        words = len(self.answerer.encode([Turn(question, images=num_images)])) - num_images
        return Reading(words, 0, self.answerer.model.context - words - max_new_tokens)

    def _prompts(
        self,
        pictures: Sequence[Sequence[SeenImage]],
        questions: Sequence[str],
        budgets: TokenBudget | Sequence[TokenBudget],
        seconds: float = 0.0,
    ) -> list[VisualPrompt]:
        """Each question with its pictures compressed for it; seeing these took `seconds`."""
        counts = [len(some) for some in pictures]
        asked = [check_question(q, count) for q, count in zip(questions, counts, strict=True)]
        template, text_of = self.answerer.template, self.front_end.text_of
        texts = [text_of(q, n, template) for q, n in zip(asked, counts, strict=True)]
        prompts = [
            render(template, [Turn(question, images=count)])
            for question, count in zip(asked, counts, strict=True)
        ]
        reads_words = self.front_end.reads_words
        words = [self.answerer.embed_words(one) for one in asked] if reads_words else None
        compressed = self.front_end.compress(pictures, texts, budgets, words)
        return [
            VisualPrompt(prompt, replace(one, timing=replace(one.timing, vision=seconds)))
            for prompt, one in zip(prompts, compressed, strict=True)
        ]
