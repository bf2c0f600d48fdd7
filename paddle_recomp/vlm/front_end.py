"""Everything in front of the language model: a picture is seen once, then compressed for each
question. No paddle here: the backend is handed in."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from PIL import Image

from paddle_recomp.backends.base import Backend
from paddle_recomp.config import TokenBudget
from paddle_recomp.errors import (
    ConfigError,
    FeatureError,
    ImageError,
    QuestionError,
    RecompWarning,
)
from paddle_recomp.json_files import listed as listed_names
from paddle_recomp.preprocess import (
    Box,
    ChatTemplate,
    ClipTokenizer,
    ImageProcessor,
    QuestionSource,
    check_text,
    clip_text,
    crop_box,
    load_image,
)
from paddle_recomp.types import StageInfo, Timing, VisualTokens
from paddle_recomp.vlm.cached_backend import CachedBackend

T = TypeVar("T")
ImageLike = Image.Image | str | Path
"""A picture, or the file that it is in."""


@dataclass(frozen=True)
class SeenImage:
    """A picture with the features that the vision tower gave for it; ask as many questions about
    it as you like."""

    picture: Image.Image
    box: Box
    """The part of the picture that the patches cover, in its own pixels."""
    features: dict[str, np.ndarray]
    """The outputs of the vision graph, B = 1."""
    seconds: float
    """Seconds of preparing the pixels and of the vision tower; in a batch, the picture's share of
    its time."""

    @property
    def num_patches(self) -> int:
        """N."""
        return int(self.features["features"].shape[1])


@dataclass(frozen=True)
class CompressedPictures:
    """The pictures of a question, each compressed for it."""

    compressed: tuple[VisualTokens, ...]
    stages: tuple[StageInfo, ...]
    """Of the method that compressed, in the order of their numbers."""
    timing: Timing
    """Of the text tower and the compressor, over the whole batch."""


Images = SeenImage | ImageLike | Sequence[SeenImage | ImageLike]
"""The pictures of a question: one, several, or none (an empty sequence)."""


def listed(images: Images) -> list[SeenImage | ImageLike]:
    """The pictures of a question, one by one.

    Raises: ImageError for what is no picture."""
    kinds = SeenImage | Image.Image | str | os.PathLike
    given = [images] if isinstance(images, kinds) else _as_list(images)
    for one in [images] if given is None else given:
        if not isinstance(one, kinds):
            raise ImageError(
                f"a picture is of type {type(one).__name__}; expected a path, a Pillow image, or "
                "what `see` gave"
            )
    return given or []


@dataclass(frozen=True, eq=False)
class VisualFrontEnd:
    """Sees pictures, and compresses them for texts."""

    backend: Backend
    image_processor: ImageProcessor
    tokenizer: ClipTokenizer
    question_positions: int
    """Positions of CLIP's text tower."""
    question_source: QuestionSource
    """Which text of a question CLIP reads; see `clip_text`."""
    stages: tuple[StageInfo, ...]
    """Of the method, in the order of their numbers."""
    question_begin: str = ""
    """What stands in front of a prompt's first line, where that is what CLIP reads."""

    def text_of(self, question: str, num_images: int, template: ChatTemplate) -> str:
        """The text of a question that `compress` takes; see `preprocess.clip_text`."""
        source, begin = self.question_source, self.question_begin
        return clip_text(question, num_images, template, source, begin)

    @property
    def reads_words(self) -> bool:
        """Whether the compressor reads the question's words as the language model embeds them."""
        return "word_embeds" in self.backend.inputs("compress")

    def see(self, images: Sequence[ImageLike]) -> list[SeenImage]:
        """Runs the vision tower over a batch of pictures; each gets its share of the time.

        The features of a picture equal those that it has alone, except for the last digits of
        float32. Only with dynamic INT8 (`--precision int8` without `--quantization static`) do they
        depend a little on the other pictures, because the ranges of activations span the whole
        batch.

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

    def see_all(self, groups: Sequence[Images]) -> tuple[list[tuple[SeenImage, ...]], float]:
        """The pictures of each question, and the seconds of the one pass that saw the new ones
        among them. A picture that is given twice, by the same path or as the same object, is seen
        once.

        Raises: as `see`."""
        given = [listed(images) for images in groups]
        new = _new(image for images in given for image in images)
        seen = dict(zip(new, self.see(list(new.values())), strict=True))
        pictures = [
            tuple(
                image if isinstance(image, SeenImage) else seen[_identity(image)]
                for image in images
            )
            for images in given
        ]
        return pictures, sum(image.seconds for image in seen.values())

    def num_new(self, images: Images) -> int:
        """How many pictures among these are not seen yet."""
        return len(_new(listed(images)))

    def num_unknown(self, images: Images) -> int:
        """How many pictures among these need the vision tower, because no cache knows their
        features. This reads and prepares them.

        Raises: ImageError."""
        new = list(_new(listed(images)).values())
        if not new or not isinstance(self.backend, CachedBackend):
            return len(new)
        pixels = self.image_processor([load_image(image) for image in new])
        return self.backend.num_missing(pixels)

    def without_cache(self) -> VisualFrontEnd:
        """The same one, which asks no cache of features and leaves nothing there."""
        if not isinstance(self.backend, CachedBackend):
            return self
        return replace(self, backend=self.backend.backend)

    def compress(
        self,
        images: Sequence[SeenImage | Sequence[SeenImage]],
        texts: Sequence[str],
        budgets: TokenBudget | Sequence[TokenBudget],
        words: Sequence[np.ndarray] | None = None,
    ) -> list[CompressedPictures]:
        """Compresses the picture or pictures of each question for the text that CLIP reads of it
        (`question_source`), all in one pass; the times are those of the batch. With dynamic INT8
        the other questions of a batch have a little influence, as in `see`. `words` are those of
        each question, [W_i, D], for a compressor that reads them (`reads_words`).

        Raises: QuestionError, ImageError, FeatureError; ConfigError for an impossible budget, or
        when `words` are missing that the compressor reads."""
        pictures, texts = seen_groups(images, texts)
        counts = [len(some) for some in pictures]
        budgets = budgets_for(budgets, len(texts))
        for text in texts:
            check_text(text)
        bounds = [
            pair
            for budget, some in zip(budgets, pictures, strict=True)
            for pair in (budget.bounds(some[0].num_patches, len(some)) if some else [])
        ]
        seen = [image for some in pictures for image in some]
        compressed, timing = self._compress(seen, texts, counts, bounds, words)
        parts = iter(compressed)
        return [
            CompressedPictures(tuple(islice(parts, count)), self.stages, timing) for count in counts
        ]

    def _compress(
        self,
        images: Sequence[SeenImage],
        texts: Sequence[str],
        counts: Sequence[int],
        bounds: Sequence[tuple[int, int]],
        words: Sequence[np.ndarray] | None,
    ) -> tuple[list[VisualTokens], Timing]:
        """Compresses the pictures of all texts at once; text i has the next `counts[i]` of them."""
        if not images:
            return [], Timing()
        start = time.perf_counter()
        reads = self.backend.inputs("compress")
        asked: dict[str, np.ndarray] = {}
        if "text_embeds" in reads:
            asked["text_embeds"] = self._text_embeds(texts)
        if self.reads_words:
            if words is None:
                raise ConfigError(
                    "the compressor reads the question's words, which the language model embeds; "
                    "ask a VLM, which has one"
                )
            asked["word_embeds"], asked["word_mask"] = pad_words(words)
        text_done = time.perf_counter()
        outputs = self.backend.run(
            "compress",
            {
                **{
                    name: np.concatenate([seen.features[name] for seen in images])
                    for name in images[0].features
                },
                **{name: np.repeat(value, counts, axis=0) for name, value in asked.items()},
                "token_bounds": np.array(bounds, dtype=np.int64),
            },
        )
        check_stages(outputs, self.stages)
        timing = Timing(text=text_done - start, compress=time.perf_counter() - text_done)
        return [_one(outputs, i) for i in range(len(images))], timing

    def _text_embeds(self, texts: Sequence[str]) -> np.ndarray:
        """CLIP's embeddings of texts: [B, P]."""
        ids, truncated = self.tokenizer.encode(texts, self.question_positions)
        if any(truncated):
            warnings.warn(
                f"the question is longer than CLIP's {self.question_positions} tokens; the "
                "filter reads only its beginning, the language model all of it",
                RecompWarning,
                stacklevel=2,
            )
        return self.backend.run("text", {"question_ids": ids})["text_embeds"]


def pad_words(words: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Words [W_i, D] of several questions -> word_embeds [B, W, D] float32, zeros behind the last
    word, and word_mask [B, W] bool."""
    lengths = np.array([len(one) for one in words])
    mask = np.arange(lengths.max()) < lengths[:, None]
    embeds = np.zeros((*mask.shape, words[0].shape[1]), dtype=np.float32)
    embeds[mask] = np.concatenate(words)
    return embeds, mask


def budgets_for(
    budgets: TokenBudget | Sequence[TokenBudget], num_questions: int
) -> Sequence[TokenBudget]:
    """A budget for each question, where one is given for all or one for each.

    Raises: ConfigError for another number of budgets, or for anything that is none."""
    if isinstance(budgets, TokenBudget):
        return [budgets] * num_questions
    if isinstance(budgets, str) or not isinstance(budgets, Iterable):
        raise ConfigError(f"a budget is {budgets!r}; expected a TokenBudget")
    given = list(budgets)
    if len(given) != num_questions:
        raise ConfigError(f"{len(given)} budgets for {num_questions} questions")
    for one in given:
        if not isinstance(one, TokenBudget):
            raise ConfigError(f"a budget is {one!r}; expected a TokenBudget")
    return given


def check_stages(outputs: Mapping[str, np.ndarray], stages: Sequence[StageInfo]) -> None:
    """Compares the stages of the tokens that a compressor gave with those that it declares: tokens
    of another one would be in no count.

    Raises: FeatureError naming the stage."""
    stage, count = outputs["token_stage"], outputs["token_count"]
    real = stage[np.arange(stage.shape[1]) < count[:, None]]
    wrong = real[(real < 0) | (real >= len(stages))]
    if wrong.size:
        last = len(stages) - 1
        raise FeatureError(
            f"token_stage holds {wrong.max()}; expected 0{f' to {last}' if last else ''}, as the "
            f"compressor has {len(stages)} stage{'s' if last else ''}: "
            f"{listed_names(one.name for one in stages)}"
        )


def paired(images: Iterable[T], questions: Iterable[str]) -> tuple[list[T], list[str]]:
    """The pictures of each question, and the questions, as lists.

    Raises: QuestionError when there are not pictures for each question, or no question at all."""
    groups = _as_list(images)
    asked = None if isinstance(questions, str) else _as_list(questions)
    if groups is None or asked is None:
        name, given = ("pictures", images) if groups is None else ("questions", questions)
        raise QuestionError(f"the {name} are of type {type(given).__name__}; expected a list")
    if len(groups) != len(asked) or not asked:
        raise QuestionError(f"pictures for {len(groups)} of {len(asked)} questions")
    return groups, asked


def seen_groups(
    images: Iterable[SeenImage | Sequence[SeenImage]], texts: Iterable[str]
) -> tuple[list[list[SeenImage]], list[str]]:
    """`paired` for seen pictures. Raises: also ImageError for a picture that was not seen."""
    groups, asked = paired(images, texts)
    pictures = [listed(some) for some in groups]
    for one in (image for some in pictures for image in some):
        if not isinstance(one, SeenImage):
            raise ImageError(f"a picture is of type {type(one).__name__}; expected what `see` gave")
    return cast(list[list[SeenImage]], pictures), asked


def _as_list(values: Iterable[T]) -> list[T] | None:
    """None for what cannot be listed."""
    return list(values) if isinstance(values, Iterable) else None


def _new(images: Iterable[SeenImage | ImageLike]) -> dict[object, ImageLike]:
    """The pictures among these that are not seen yet, each once."""
    return {_identity(one): one for one in images if not isinstance(one, SeenImage)}


def _identity(image: ImageLike) -> object:
    """A key that is equal for the same path and for the same object."""
    return id(image) if isinstance(image, Image.Image) else Path(image)


def _one(outputs: dict[str, np.ndarray], i: int) -> VisualTokens:
    """Image i of a batch of compress outputs, without its padding."""
    one, count = slice(i, i + 1), int(outputs["token_count"][i])
    return VisualTokens(
        embeds=outputs["visual_embeds"][one, :count],
        count=outputs["token_count"][one],
        index=outputs["token_index"][one, :count],
        stage=outputs["token_stage"][one, :count],
        owner=outputs["token_owner"][one],
        centre=outputs["token_centre"][one, :count],
    )
