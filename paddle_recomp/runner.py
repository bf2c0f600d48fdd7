"""The runner: a picture is seen once, and every question is answered from the tokens it needs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from paddle_recomp.config import TokenBudget
from paddle_recomp.encoder import ImageEncoder, ImageLike, SeenImage, VisualPrompt
from paddle_recomp.errors import ConfigError, ContextLengthError
from paddle_recomp.llm.base import LanguageModel
from paddle_recomp.llm.generation import generate
from paddle_recomp.preprocess import IMAGE_TOKEN, LanguageTokenizer, check_question
from paddle_recomp.types import Answer, Timing, stage_counts

MAX_NEW_TOKENS = 128


class AnswerStream:
    """Pieces of an answer as they are generated; `answer` is the whole once they have ended."""

    def __init__(self, pieces: Iterator[str | Answer]) -> None:
        self._pieces = pieces
        self.answer: Answer | None = None

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            if isinstance(piece, Answer):
                self.answer = piece
            else:
                yield piece


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
        stream = self.stream(image, question, budget, max_new_tokens)
        for _ in stream:
            pass
        assert stream.answer is not None
        return stream.answer

    def stream(
        self,
        image: SeenImage | ImageLike,
        question: str,
        budget: TokenBudget | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> AnswerStream:
        """`ask`, piece by piece. Raises as `ask` does, when the first piece is taken."""
        return AnswerStream(self._answer(image, question, budget or TokenBudget(), max_new_tokens))

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
        for tokens in self._generate(prompts, max_new_tokens):
            marks.append(time.perf_counter())
            steps.append(tokens)
        answers = []
        for i, prompt in enumerate(prompts):
            start = marks[0] - prompt.timing.text - prompt.timing.compress
            answers.append(
                self._finish(prompt, [int(step[i]) for step in steps], 0.0, start, marks)
            )
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
        decoder, tokens, marks = self.tokenizer.stream(), [], [time.perf_counter()]
        for step in self._generate([prompt], max_new_tokens):
            marks.append(time.perf_counter())
            tokens.append(int(step[0]))
            if piece := decoder.feed(tokens[-1]):
                yield piece
        if piece := decoder.flush():
            yield piece
        vision = 0.0 if seen is image else seen.seconds
        yield self._finish(prompt, tokens, vision, start, marks)

    def _generate(
        self, prompts: Sequence[VisualPrompt], max_new_tokens: int
    ) -> Iterator[np.ndarray]:
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}; expected at least 1")
        embeds = [self._splice(prompt, max_new_tokens) for prompt in prompts]
        return generate(self.language_model, embeds, max_new_tokens, self.tokenizer.eos_token_ids)

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
        tokens: list[int],
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
        )
