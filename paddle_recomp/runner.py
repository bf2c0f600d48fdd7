"""The runner: a picture is seen once, and every question is answered from the tokens it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.encoder import ImageEncoder, ImageLike, SeenImage, VisualPrompt
from paddle_recomp.errors import ContextLengthError
from paddle_recomp.llm.base import LanguageModel
from paddle_recomp.llm.draft import Draft
from paddle_recomp.llm.generation import generate
from paddle_recomp.preprocess import IMAGE_TOKEN, LanguageTokenizer, check_question
from paddle_recomp.types import Answer, Timing, stage_counts


class AnswerStream:
    """Pieces of an answer as they are generated. `cancel`, leaving the loop, an interrupt or an
    error in it cut the answer short. `answer` is there once the stream has ended in any way, unless
    that was before the first token."""

    def __init__(self, write: Callable[[AnswerStream], Iterator[str]]) -> None:
        """`write` gives the pieces, and leaves the answer here when it ends or is closed."""
        self.answer: Answer | None = None
        self.cancelled = False
        self._pieces = write(self)

    def cancel(self) -> None:
        """Ends the answer after the token that is being generated; any thread may say so."""
        self.cancelled = True

    def __iter__(self) -> Iterator[str]:
        # Whoever leaves a loop closes this generator, and that closes the one behind it.
        yield from self._pieces


class VLM:
    """A vision-language model that recompresses its picture for every question."""

    def __init__(
        self, encoder: ImageEncoder, language_model: LanguageModel, tokenizer: LanguageTokenizer
    ) -> None:
        self.encoder = encoder
        self.language_model = language_model
        self.tokenizer = tokenizer

    def see(self, image: ImageLike) -> SeenImage:
        """Runs the vision tower on a picture, once for all questions.

        Raises: ImageError, FeatureError."""
        return self.encoder.see([image])[0]

    def ask(
        self,
        image: SeenImage | ImageLike,
        question: str,
        budget: TokenBudget | None = None,
        generation: GenerationConfig | None = None,
    ) -> Answer:
        """Answers a question about a picture from the visual tokens that the question needs.

        Raises: ImageError, QuestionError, ConfigError (budget), ContextLengthError."""
        stream = self.stream(image, question, budget, generation)
        for _ in stream:
            pass
        assert stream.answer is not None
        return stream.answer

    def stream(
        self,
        image: SeenImage | ImageLike,
        question: str,
        budget: TokenBudget | None = None,
        generation: GenerationConfig | None = None,
    ) -> AnswerStream:
        """`ask`, piece by piece. Raises as `ask` does, when the first piece is taken."""
        budget, generation = budget or TokenBudget(), generation or GenerationConfig()
        return AnswerStream(partial(self._answer, image, question, budget, generation))

    def ask_batch(
        self,
        images: Sequence[SeenImage],
        questions: Sequence[str],
        budgets: TokenBudget | Sequence[TokenBudget] | None = None,
        generation: GenerationConfig | None = None,
    ) -> list[Answer]:
        """Answers one question for each picture in one pass; the times are those of the batch.

        Raises: as `ask`; QuestionError when the numbers of pictures and questions differ."""
        prompts = self.encoder.compress(images, questions, budgets or TokenBudget())
        return self.answer(prompts, generation)

    def answer(
        self, prompts: Sequence[VisualPrompt], generation: GenerationConfig | None = None
    ) -> list[Answer]:
        """Answers what `encoder.compress` made, in one pass or one by one, in one pass of the
        language model; the time to the first token is that of both.

        Raises: ContextLengthError."""
        generation = generation or GenerationConfig()
        drafts, marks = self._drafts(len(prompts), generation), [time.perf_counter()]
        for _ in self._generate(prompts, drafts, generation):
            marks.append(time.perf_counter())
        return [
            self._finish(
                prompt, draft, 0.0, marks[0] - prompt.timing.text - prompt.timing.compress, marks
            )
            for prompt, draft in zip(prompts, drafts, strict=True)
        ]

    def _answer(
        self,
        image: SeenImage | ImageLike,
        question: str,
        budget: TokenBudget,
        generation: GenerationConfig,
        stream: AnswerStream,
    ) -> Iterator[str]:
        # Cheap checks first: the vision tower is the expensive part.
        check_question(question)
        start = time.perf_counter()
        seen = image if isinstance(image, SeenImage) else self.see(image)
        (prompt,) = self.encoder.compress([seen], [question], budget)
        if stream.cancelled:
            return
        (draft,), marks = self._drafts(1, generation), [time.perf_counter()]
        try:
            for (piece,) in self._generate([prompt], [draft], generation):
                marks.append(time.perf_counter())
                if piece:
                    yield piece
                if stream.cancelled:
                    return
        finally:
            if len(marks) > 1:
                vision = 0.0 if seen is image else seen.seconds
                stream.answer = self._finish(prompt, draft, vision, start, marks)

    def _drafts(self, count: int, generation: GenerationConfig) -> list[Draft]:
        ends = self.tokenizer.eos_token_ids
        return [Draft(self.tokenizer.stream(), ends, generation) for _ in range(count)]

    def _generate(
        self, prompts: Sequence[VisualPrompt], drafts: Sequence[Draft], generation: GenerationConfig
    ) -> Iterator[list[str]]:
        embeds = [self._splice(prompt, generation.max_new_tokens) for prompt in prompts]
        return generate(self.language_model, embeds, drafts, generation)

    def _splice(self, prompt: VisualPrompt, max_new_tokens: int) -> np.ndarray:
        """The embeddings [T, D] of a prompt, visual tokens where it names the picture."""
        visual = prompt.compressed.tokens[0]
        ids = np.array(self.tokenizer.encode(prompt.text), dtype=np.int64)
        words, context = len(ids) - 1, self.language_model.context
        if words + len(visual) + max_new_tokens > context:
            raise ContextLengthError(
                f"the prompt has {words} tokens of text and {len(visual)} of the picture, the "
                f"answer may take {max_new_tokens}; the language model's context is {context}"
            )
        (place,) = np.flatnonzero(ids == IMAGE_TOKEN)
        embeds = self.language_model.embed(np.delete(ids, place))
        return np.concatenate([embeds[:place], visual, embeds[place:]]).astype(np.float32)

    def _finish(
        self,
        prompt: VisualPrompt,
        draft: Draft,
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
            stage_counts=stage_counts(prompt.compressed),
            num_patches=int(prompt.compressed.owner.shape[1]),
            timing=timing,
            compressed=prompt.compressed,
            finish_reason=draft.finish_reason or "cancelled",
            logprobs=tuple(draft.logprobs),
        )
