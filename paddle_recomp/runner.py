"""The runner: a picture is seen once, and every question is answered from the tokens it needs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from paddle_recomp.config import TokenBudget
from paddle_recomp.conversation import (
    DEFAULT_MODE,
    MAX_NEW_TOKENS,
    Conversation,
    Mode,
    check_mode,
)
from paddle_recomp.encoder import ImageEncoder, ImageLike, SeenImage, VisualPrompt
from paddle_recomp.llm.base import LanguageModel
from paddle_recomp.llm.generation import generate
from paddle_recomp.llm.prompts import check_room, splice
from paddle_recomp.preprocess import LanguageTokenizer, check_question
from paddle_recomp.types import Answer, AnswerStream, Timing, stage_counts


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
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> Answer:
        """Answers a question about a picture from the visual tokens that the question needs.

        Raises: ImageError, QuestionError, ConfigError (budget), ContextLengthError."""
        return self.stream(image, question, budget, max_new_tokens).finish()

    def stream(
        self,
        image: SeenImage | ImageLike,
        question: str,
        budget: TokenBudget | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> AnswerStream:
        """`ask`, piece by piece. Raises as `ask` does, when the first piece is taken."""
        return AnswerStream(self._answer(image, question, budget or TokenBudget(), max_new_tokens))

    def chat(self, image: SeenImage | ImageLike, mode: Mode = DEFAULT_MODE) -> Conversation:
        """Begins a conversation about a picture; see `Conversation`.

        Raises: ImageError, FeatureError, ConfigError (mode)."""
        check_mode(mode)
        seen = image if isinstance(image, SeenImage) else self.see(image)
        return Conversation(self, seen, mode)

    def ask_batch(
        self,
        images: Sequence[SeenImage],
        questions: Sequence[str],
        budgets: TokenBudget | Sequence[TokenBudget] | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> list[Answer]:
        """Answers one question for each picture in one pass; the times are those of the batch.

        Raises: as `ask`; QuestionError when the numbers of pictures and questions differ."""
        prompts = self.encoder.compress(images, questions, budgets or TokenBudget())
        return self.answer(prompts, max_new_tokens)

    def answer(
        self, prompts: Sequence[VisualPrompt], max_new_tokens: int = MAX_NEW_TOKENS
    ) -> list[Answer]:
        """Answers what `encoder.compress` made, in one pass or one by one, in one pass of the
        language model; the time to the first token is that of both.

        Raises: ConfigError (max_new_tokens), ContextLengthError."""
        steps, marks = [], [time.perf_counter()]
        embeds = [self._splice(prompt, max_new_tokens) for prompt in prompts]
        for step in self._generate(self.language_model, embeds, max_new_tokens):
            marks.append(time.perf_counter())
            steps.append(step)
        answers = []
        for i, prompt in enumerate(prompts):
            start = marks[0] - prompt.timing.text - prompt.timing.compress
            ids = [int(step[i]) for step in steps]
            answers.append(self._finish(prompt, ids, len(embeds[i]), 0.0, start, marks))
        return answers

    def _answer(
        self,
        image: SeenImage | ImageLike,
        question: str,
        budget: TokenBudget,
        max_new_tokens: int,
    ) -> Iterator[str | Answer]:
        # Cheap checks first: the vision tower is the expensive part.
        check_question(question)
        start = time.perf_counter()
        seen = image if isinstance(image, SeenImage) else self.see(image)
        (prompt,) = self.encoder.compress([seen], [question], budget)
        embeds = self._splice(prompt, max_new_tokens)
        vision = 0.0 if seen is image else seen.seconds
        model = self.language_model
        yield from self.speak(model, prompt, embeds, max_new_tokens, start, vision)

    def speak(
        self,
        model: LanguageModel,
        prompt: VisualPrompt,
        embeds: np.ndarray,
        max_new_tokens: int,
        start: float,
        vision: float = 0.0,
    ) -> Iterator[str | Answer]:
        """The pieces of an answer to the embeddings [T, D] that a prompt became, then the Answer.
        `start` is the time of the question, `vision` the part of it that the picture took.

        Raises: ConfigError (max_new_tokens), ContextLengthError."""
        decoder, tokens, marks = self.tokenizer.stream(), [], [time.perf_counter()]
        for step in self._generate(model, [embeds], max_new_tokens):
            marks.append(time.perf_counter())
            tokens.append(int(step[0]))
            if piece := decoder.feed(tokens[-1]):
                yield piece
        if piece := decoder.flush():
            yield piece
        yield self._finish(prompt, tokens, len(embeds), vision, start, marks)

    def _generate(
        self, model: LanguageModel, embeds: Sequence[np.ndarray], max_new_tokens: int
    ) -> Iterator[np.ndarray]:
        return generate(model, embeds, max_new_tokens, self.tokenizer.eos_token_ids)

    def _splice(self, prompt: VisualPrompt, max_new_tokens: int) -> np.ndarray:
        """The embeddings [T, D] of a prompt, visual tokens where it names the picture."""
        ids, blocks = self.tokenizer.encode(prompt.text), [prompt.compressed.tokens[0]]
        check_room(self.language_model, ids, blocks, max_new_tokens)
        return splice(self.language_model, ids, blocks)

    def _finish(
        self,
        prompt: VisualPrompt,
        tokens: list[int],
        prefilled: int,
        vision: float,
        start: float,
        marks: list[float],
    ) -> Answer:
        """`marks` are the times when the prompt was ready and when each token was."""
        ends = self.tokenizer.eos_token_ids
        first_end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        timing: Timing = replace(
            prompt.timing,
            vision=vision,
            prefill=marks[1] - marks[0],
            decode=marks[-1] - marks[1],
            first_token=marks[1] - start,
        )
        return Answer(
            text=self.tokenizer.decode(tokens[:first_end]).strip(),
            token_ids=tuple(tokens[:first_end]),
            stage_counts=stage_counts(prompt.compressed),
            num_patches=int(prompt.compressed.owner.shape[1]),
            timing=timing,
            compressed=prompt.compressed,
            prefilled=prefilled,
        )
