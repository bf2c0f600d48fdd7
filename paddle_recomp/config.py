"""Frozen, validated configuration: options in general and those of the towers, the token budget,
generation. A compression method's own options stand beside the method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from paddle_recomp.errors import ConfigError

T = TypeVar("T")


def option(default: T, doc: str, least: float | None = None) -> T:
    """A field of an options dataclass, with its sentence for help and docs and its least value."""
    found: T = field(default=default, metadata={"doc": doc, "least": least})
    return found


class Options:
    """Base of frozen options: every value has the type of its field and keeps to its least value.

    Raises: ConfigError that names the option, its value and what is allowed."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for one in fields(self):  # type: ignore[arg-type]
            value, hint = getattr(self, one.name), hints[one.name]
            if allowed := get_args(hint):
                if value not in allowed or isinstance(value, bool):
                    raise ConfigError(f"{one.name} is {value!r}; allowed: {listing(allowed)}")
            elif not _is_instance(value, hint):
                raise ConfigError(f"{one.name} is {value!r}; expected {hint.__name__}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{one.name} is {value!r}; expected a finite number")
            least = one.metadata.get("least")
            if least is not None and value < least:
                raise ConfigError(f"{one.name} is {value!r}; expected at least {least}")


def parse_option(options: type, name: str, text: str) -> Any:
    """The value of an option that comes as text, from a command line.

    Raises: ConfigError for text that is no value of the option's type."""
    hint = get_type_hints(options)[name]
    allowed = get_args(hint) or ((True, False) if hint is bool else ())
    for value in allowed:
        if text.lower() == str(value).lower():
            return value
    if allowed or hint is str:
        return text
    try:
        return hint(text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r}; expected {hint.__name__}") from None


def listing(values: Iterable[Any]) -> str:
    """Values as a list for a message."""
    return ", ".join(str(value) for value in values)


def _is_instance(value: object, kind: type) -> bool:
    if kind is not bool and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


@dataclass(frozen=True)
class TowerOptions(Options):
    """Options of the two towers, for every compression method."""

    question_source: Literal["question", "prompt_first_line"] = option(
        "question",
        "CLIP reads the question, or line 0 of the decoded prompt, with the token that begins it "
        "(public code).",
    )
    text_pooling: Literal["end_of_text", "last_position"] = option(
        "end_of_text",
        "The text is pooled as CLIP does, or at the last padded position (public code).",
    )
    patch_layernorm: bool = option(
        True, "Apply CLIP's post_layernorm to the patches before visual_projection."
    )
    attention: Literal["concat", "heads"] = option(
        "concat",
        "The visual score comes from the concatenated heads, or is the mean over the heads.",
    )
    score_layer: int = option(
        -1,
        "Methods read the class token's attention in this layer as `layer_score`; -1 is the last "
        "layer.",
    )


@dataclass(frozen=True)
class TokenBudget:
    """How many tokens the pictures of a question may become: as many as the filter finds (no field
    set), at most `max_tokens`, exactly `tokens`, exactly a `ratio` of the patches (to the nearest
    whole token, at least one), as many as let the first token of the answer come within `ttft_ms`
    milliseconds, or `full`: all of them, uncompressed. `ttft_ms` with `max_tokens` means as many as
    fit the time, and at most so many. Several pictures share `tokens` and `max_tokens` equally."""

    tokens: int | None = None
    max_tokens: int | None = None
    full: bool = False
    ratio: float | None = None
    ttft_ms: float | None = None

    def __post_init__(self) -> None:
        given = [one.name for one in fields(self) if getattr(self, one.name)]
        if len(given) > 1 and given != ["max_tokens", "ttft_ms"]:
            raise ConfigError(f"{' and '.join(given)} exclude each other; give one")
        for name in ("tokens", "max_tokens"):
            value = getattr(self, name)
            if value is not None and not (_is_instance(value, int) and value >= 1):
                raise ConfigError(f"{name} is {value!r}; expected an integer of at least 1")
        if self.ratio is not None and not (
            isinstance(self.ratio, (int, float)) and self.ratio is not True and 0 < self.ratio <= 1
        ):
            raise ConfigError(f"ratio is {self.ratio!r}; expected above 0, up to 1")
        if not isinstance(self.full, bool):
            raise ConfigError(f"full is {self.full!r}; expected true or false")
        if self.ttft_ms is not None and not (
            _is_instance(self.ttft_ms, float) and 0 < self.ttft_ms < math.inf
        ):
            raise ConfigError(f"ttft_ms is {self.ttft_ms!r}; expected milliseconds above 0")

    def bounds(self, num_patches: int, num_images: int = 1) -> list[tuple[int, int]]:
        """The least and most tokens for each of the pictures of a question, of `num_patches` each;
        the remainder of an equal share goes to the first ones.

        Raises: ConfigError when `tokens` asks for more tokens than there are patches, there is not
        one token for each picture, or only a runner that knows its machine can tell (`ttft_ms`)."""
        self.check(num_images)
        everything, several = num_patches * num_images, f"{num_images} images"
        if self.full:
            return [(num_patches, num_patches)] * num_images
        if self.ratio is not None:
            count = max(1, round(self.ratio * num_patches))
            return [(count, count)] * num_images
        if self.tokens is not None:
            if self.tokens > everything > 0:
                owner = "an image has" if num_images == 1 else f"{several} have"
                raise ConfigError(f"tokens is {self.tokens}, but {owner} only {everything} patches")
            return [(share, share) for share in _shares(self.tokens, num_images)]
        shares = _shares(self.max_tokens or everything, num_images)
        return [(1, min(share, num_patches)) for share in shares]

    def check(self, num_images: int, may_be_time: bool = False) -> None:
        """What can be told of a budget for so many pictures before one of them is seen.

        Raises: ConfigError as `bounds`; `ttft_ms` only where it may not be."""
        if self.ttft_ms is not None and not may_be_time:
            raise ConfigError("ttft_ms is for one question at a time, put to a VLM or its chat")
        # A prompt that speaks of an image needs at least one token of it.
        for name in ("tokens", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < num_images:
                raise ConfigError(f"{name} is {value}, which {num_images} images cannot share")


def _shares(total: int, parts: int) -> Sequence[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]


@dataclass(frozen=True)
class GenerationConfig:
    """How the language model picks the tokens of an answer, and where the answer ends. The
    default is greedy: always the likeliest token."""

    max_new_tokens: int = 128
    """The longest answer."""
    temperature: float = 0.0
    """The logits are divided by it before a token is drawn; 0 means greedy."""
    top_k: int | None = None
    """Draw from this many of the likeliest tokens."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens whose mass is at least this."""
    repetition_penalty: float = 1.0
    """Above 1 it makes tokens that the answer already has less likely; it ignores the prompt,
    because an answer may repeat words of the question."""
    seed: int | None = None
    """The same seed draws the same answer; None draws another one each time."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; neither they nor any text behind them are part of it."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer, besides those of the tokenizer."""

    def __post_init__(self) -> None:
        self._check_integer("max_new_tokens", 1)
        self._check_number("temperature", 0, math.inf)
        if self.top_k is not None:
            self._check_integer("top_k", 1)
        self._check_number("top_p", 0, 1)
        self._check_number("repetition_penalty", 0, math.inf)
        for name in ("top_p", "repetition_penalty"):
            if getattr(self, name) == 0:
                raise ConfigError(f"{name} is 0; expected more than that")
        if self.seed is not None:
            self._check_integer("seed", 0)
        for name, kind in (("stop", str), ("eos_token_ids", int)):
            value = getattr(self, name)
            if not (isinstance(value, tuple) and all(_is_instance(one, kind) for one in value)):
                raise ConfigError(f"{name} is {value!r}; expected a tuple of {kind.__name__}")
        if "" in self.stop:
            raise ConfigError("stop has an empty text in it, which would end every answer")
        if self.temperature == 0 and (self.top_k is not None or self.top_p < 1):
            name = "top_p" if self.top_k is None else "top_k"
            raise ConfigError(
                f"{name} is {getattr(self, name)}, but nothing is drawn at temperature 0"
            )

    def _check_integer(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not (_is_instance(value, int) and value >= least):
            raise ConfigError(f"{name} is {value!r}; expected an integer of at least {least}")

    def _check_number(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not (_is_instance(value, float) and math.isfinite(value) and least <= value <= most):
            limits = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
            raise ConfigError(f"{name} is {value!r}; expected a number {limits}")
