"""Everything in front of the language model: a picture is seen once, then compressed for each
question. No paddle here: the backend is handed in."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from paddle_recomp.backends.base import Backend
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.config import TokenBudget
from paddle_recomp.errors import QuestionError, RecompWarning
from paddle_recomp.preprocess import (
    Box,
    ClipTokenizer,
    ImageProcessor,
    Turn,
    check_question,
    crop_box,
    first_line,
    load_image,
    render,
    without_images,
)
from paddle_recomp.types import Compressed, StageInfo, Timing

ImageLike = Image.Image | str | Path
"""A picture, or the file that it is in."""


@dataclass(frozen=True)
class SeenImage:
    """A picture with what the vision tower made of it; ask as many questions as you like."""

    picture: Image.Image
    box: Box
    """The part of the picture that the patches cover, in its own pixels."""
    features: dict[str, np.ndarray]
    """The outputs of the vision graph, B = 1."""
    seconds: float
    """What the vision tower and the preparation of its pixels took."""

    @property
    def num_patches(self) -> int:
        """N."""
        return int(self.features["visual_score"].shape[1])


@dataclass(frozen=True)
class VisualPrompt:
    """A question with the visual tokens that it needs, ready to be spliced together."""

    text: str
    """The prompt, with a placeholder where each picture goes."""
    compressed: tuple[Compressed, ...]
    """Each picture: numpy, B = 1; `tokens` are the embeddings [1, M, D] for the language model."""
    timing: Timing
    """Of the text tower and the compressor."""


Images = SeenImage | ImageLike | Sequence[SeenImage | ImageLike]
"""The pictures of a question: one, several, or none (an empty sequence)."""


def listed(images: Images) -> Sequence[SeenImage | ImageLike]:
    """The pictures of a question, one by one."""
    return [images] if isinstance(images, SeenImage | Image.Image | str | Path) else images


class VisualFrontEnd:
    """Sees pictures, and compresses them for questions."""

    def __init__(
        self,
        backend: Backend,
        image_processor: ImageProcessor,
        tokenizer: ClipTokenizer,
        question_positions: int,
        template: str,
        config: CompressionConfig,
        stages: tuple[StageInfo, ...],
    ) -> None:
        """`question_positions` is what CLIP's text tower takes, `template` names the prompt."""
        self.backend = backend
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.question_positions = question_positions
        self.template = template
        self.config = config
        self.stages = stages

    def see(self, images: Sequence[ImageLike]) -> list[SeenImage]:
        """Runs the vision tower over a batch of pictures; each is charged its share of the time.

        Raises: ImageError, FeatureError."""
        if not images:
            return []
        start = time.perf_counter()
        pictures = [load_image(image) for image in images]
        outputs = self.backend.run("vision", {"pixel_values": self.image_processor(pictures)})
        seconds = (time.perf_counter() - start) / len(pictures)
        return [
            SeenImage(
                picture=picture,
                box=crop_box(picture.size, self.image_processor),
                features={name: value[i : i + 1] for name, value in outputs.items()},
                seconds=seconds,
            )
            for i, picture in enumerate(pictures)
        ]

    def see_all(self, images: Images) -> tuple[SeenImage, ...]:
        """The pictures of a question, in one pass over those that were not seen before.

        Raises: as `see`."""
        given = listed(images)
        new = iter(self.see([image for image in given if not isinstance(image, SeenImage)]))
        return tuple(image if isinstance(image, SeenImage) else next(new) for image in given)

    def compress(
        self,
        images: Sequence[SeenImage | Sequence[SeenImage]],
        questions: Sequence[str],
        budgets: TokenBudget | Sequence[TokenBudget],
    ) -> list[VisualPrompt]:
        """Compresses the picture or pictures of each question for it, all in one pass; the times
        are the batch's.

        Raises: QuestionError, ConfigError (budget), FeatureError."""
        if len(images) != len(questions) or not questions:
            raise QuestionError(f"pictures for {len(images)} of {len(questions)} questions")
        pictures = [[one] if isinstance(one, SeenImage) else one for one in images]
        counts = [len(some) for some in pictures]
        questions = [check_question(q, count) for q, count in zip(questions, counts, strict=True)]
        prompts = [
            render(self.template, [Turn(question, images=count)])
            for question, count in zip(questions, counts, strict=True)
        ]
        if isinstance(budgets, TokenBudget):
            budgets = [budgets] * len(questions)
        bounds = [
            pair
            for budget, some in zip(budgets, pictures, strict=True)
            for pair in (budget.bounds(some[0].num_patches, len(some)) if some else [])
        ]
        seen = [image for some in pictures for image in some]
        compressed, timing = self._compress(seen, questions, prompts, counts, bounds)
        parts = iter(compressed)
        return [
            VisualPrompt(prompt, tuple(islice(parts, count)), timing)
            for prompt, count in zip(prompts, counts, strict=True)
        ]

    def _compress(
        self,
        images: Sequence[SeenImage],
        questions: Sequence[str],
        prompts: Sequence[str],
        counts: Sequence[int],
        bounds: Sequence[tuple[int, int]],
    ) -> tuple[list[Compressed], Timing]:
        """All pictures of all questions, of which question i has the next `counts[i]`."""
        if not images:
            return [], Timing()
        start = time.perf_counter()
        text_embeds = self._text_embeds(questions, prompts)
        text_done = time.perf_counter()
        outputs = self.backend.run(
            "compress",
            {
                **{
                    name: np.concatenate([seen.features[name] for seen in images])
                    for name in images[0].features
                },
                "text_embeds": np.repeat(text_embeds, counts, axis=0),
                "token_bounds": np.array(bounds, dtype=np.int64),
            },
        )
        timing = Timing(text=text_done - start, compress=time.perf_counter() - text_done)
        return [_one(outputs, i) for i in range(len(images))], timing

    def _text_embeds(self, questions: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
        """What CLIP makes of what it is given to read: [B, P]."""
        texts = [without_images(question) for question in questions]
        if self.config.towers.question_source == "prompt_first_line":
            texts = [first_line(prompt) for prompt in prompts]
        ids, truncated = self.tokenizer.encode(texts, self.question_positions)
        if any(truncated):
            warnings.warn(
                f"the question is longer than CLIP's {self.question_positions} tokens; the "
                "filter reads only its beginning, the language model all of it",
                RecompWarning,
                stacklevel=2,
            )
        return self.backend.run("text", {"question_ids": ids})["text_embeds"]


def _one(outputs: dict[str, np.ndarray], i: int) -> Compressed:
    """Image i of a batch of compress outputs, without its padding."""
    one, count = slice(i, i + 1), int(outputs["token_count"][i])
    return Compressed(
        tokens=outputs["visual_embeds"][one, :count],
        count=outputs["token_count"][one],
        index=outputs["token_index"][one, :count],
        stage=outputs["token_stage"][one, :count],
        owner=outputs["token_owner"][one],
        centre=outputs["token_centre"][one, :count],
    )
