"""Plain data that passes between the rooms. Shapes: B images, N patches, C vision width,
P joint width, M token capacity, D language-model width."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

Tensor: TypeAlias = Any
"""A paddle.Tensor inside the graph, a numpy.ndarray outside; the light path has no paddle."""


StageKind: TypeAlias = Literal["patch", "merged", "rest"]


@dataclass(frozen=True)
class StageInfo:
    """One of a method's stages: why a token is there."""

    name: str
    kind: StageKind
    """The token is one patch as it is; several patches around a centre; or all that is left."""
    meaning: str
    """For a legend, behind the name: `stand out in the picture`."""


class Stage(IntEnum):
    """The numbers of `recoverable`'s stages in `Compressed.stage`. Padding is −1 in every method,
    and other methods declare stages of their own."""

    PADDING = -1
    VISUAL = 0
    TEXT = 1
    MERGED = 2
    REST = 3


class VisionFeatures(NamedTuple):
    """The outputs of the vision tower for an image, computed once for all questions about it."""

    features: Tensor
    """[B, N, C] float: hidden state −2, class token dropped (LLaVA's choice of layer)."""
    keys: Tensor
    """[B, N, C] float: key projections of the last layer, class token dropped."""
    visual_score: Tensor
    """[B, N] float: attention of the class token to each patch."""
    patch_embeds: Tensor
    """[B, N, P] float: each patch in the joint image-text space."""
    layer_score: Tensor = None
    """[B, N] float: attention of the class token in another layer, for methods that read it."""


class Compressed(NamedTuple):
    """The tokens that a question needs, with the provenance of every patch."""

    tokens: Tensor
    """[B, M, C] float: kept patches in ascending order, merged centres, the rest; then zeros."""
    count: Tensor
    """[B] int64: how many of the M are real."""
    index: Tensor
    """[B, M] int64: the patch number of a kept token, −1 for merged, rest and padding."""
    stage: Tensor
    """[B, M] int64: the number of one of the method's stages, −1 for padding."""
    owner: Tensor
    """[B, N] int64: the token that each patch went into, −1 where it was dropped."""
    centre: Tensor
    """[B, M] int64: the patch at the centre of a merged token, −1 elsewhere."""


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """The visual tokens of one picture as the language model reads them, with the provenance of
    every patch: numpy arrays, without the padding that `Compressed` has."""

    embeds: np.ndarray
    """[1, M, D] float32: the tokens in the language model's width."""
    count: np.ndarray
    """[1] int64: M."""
    index: np.ndarray
    """[1, M] int64, as in `Compressed`."""
    stage: np.ndarray
    """[1, M] int64: the number of one of the method's stages."""
    owner: np.ndarray
    """[1, N] int64, as in `Compressed`."""
    centre: np.ndarray
    """[1, M] int64, as in `Compressed`."""


def stage_counts(stages: Sequence[StageInfo], *pictures: VisualTokens) -> dict[str, int]:
    """Visual tokens of pictures by the names of the method's stages."""
    return {
        stage.name: sum(int((one.stage == number).sum()) for one in pictures)
        for number, stage in enumerate(stages)
    }


def num_patches(*pictures: VisualTokens) -> int:
    """Patches of pictures, kept or not."""
    return sum(int(one.owner.shape[1]) for one in pictures)


@dataclass(frozen=True)
class Timing:
    """Seconds spent in each step of one answer, or of the batch that it was a part of; `vision` is
    0 where no picture was new. The time that the reader of a stream takes between its pieces is in
    none of them."""

    vision: float = 0.0
    text: float = 0.0
    compress: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    first_token: float = 0.0
    """From the call until the first token of the answer exists (TTFT)."""


FinishReason: TypeAlias = Literal["stop", "length", "stop_string", "cancelled"]
"""Why an answer ended: by a token that ends a text, at `max_new_tokens`, at one of the `stop`
texts; or it was cut short."""


@dataclass(frozen=True)
class Answer:
    """An answer with what it cost and which tokens it was drawn from."""

    text: str
    token_ids: tuple[int, ...]
    """The generated tokens, without a token that ends the text, but with those of a stop text."""
    stage_counts: dict[str, int]
    """Visual tokens of all pictures by the names of the method's stages."""
    num_patches: int
    """Patches of all pictures."""
    timing: Timing
    compressed: tuple[VisualTokens, ...]
    """The visual tokens of each picture."""
    finish_reason: FinishReason
    logprobs: tuple[float, ...]
    """The natural log-probability of each of `token_ids` in the language model's own distribution,
    before temperature, penalty and cuts."""
    stages: tuple[StageInfo, ...] = ()
    """The stages of the method that compressed, in the order of their numbers."""
    prefilled: int = 0
    """Positions, of words and of pictures, that went through the language model before the
    first token."""

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens in front of the language model."""
        return sum(self.stage_counts.values())


def _nothing() -> Answer:
    """The remains of an answer that was cut short before its first token."""
    return Answer(
        text="",
        token_ids=(),
        stage_counts={},
        num_patches=0,
        timing=Timing(),
        compressed=(),
        finish_reason="cancelled",
        logprobs=(),
    )


class AnswerStream:
    """Pieces of an answer as they are generated. `cancel`, leaving the loop, an interrupt or an
    error in it cut the answer short. `answer` is there once the stream has ended in any way, unless
    that was before the first token; `finish` gives an answer even then."""

    def __init__(self, write: Callable[[AnswerStream], Iterator[str]]) -> None:
        """`write` gives the pieces, and leaves the answer here when it ends or is closed."""
        self.answer: Answer | None = None
        self.cancelled = False
        self._pieces = write(self)
        self._error: Exception | None = None

    def cancel(self) -> None:
        """Ends the answer after the token that is being generated. Any thread may call it."""
        self.cancelled = True

    def __iter__(self) -> Generator[str, None, None]:
        try:
            # Whoever leaves a loop closes this generator, and that closes the one behind it.
            yield from self._pieces
        except Exception as error:
            self._error = error
            raise

    def finish(self) -> Answer:
        """The answer, after all its remaining pieces. Where the stream was cut short before the
        first token, that is an answer without text, pictures and times, `cancelled`.

        Raises: as the pieces do; the same error again where one has ended the stream before."""
        for _ in self:
            pass
        if self.answer is None and self._error is not None:
            raise self._error
        return self.answer or _nothing()
