"""Frozen, validated configuration: the switches of the algorithm, the token budget, generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from paddle_recomp.errors import ConfigError


def _is_instance(value: object, kind: type) -> bool:
    if kind is not bool and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _parse(name: str, text: str, hint: Any) -> Any:
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


def _listing(values: Any) -> str:
    return ", ".join(str(value) for value in values)


@dataclass(frozen=True)
class CompressionConfig:
    """The switches of Recoverable Compression, one per place where the paper's words and the
    authors' public code differ. The defaults are the `corrected` preset."""

    method: str = "recoverable"
    """A name in `methods.METHODS`."""
    question_source: Literal["question", "prompt_first_line"] = "question"
    """What CLIP reads: the question, or line 0 of the decoded prompt (public code)."""
    text_pooling: Literal["end_of_text", "last_position"] = "end_of_text"
    """CLIP's own pooling, or the last padded position (public code)."""
    patch_layernorm: bool = True
    """Apply CLIP's post_layernorm to the patches before visual_projection."""
    attention: Literal["concat", "heads"] = "concat"
    """Visual score from the concatenated heads, or the tower's attention, mean over heads."""
    outliers: Literal["above_median", "all"] = "above_median"
    """Which outliers of the local outlier factor the dynamic scale filter counts."""
    scaling: Literal["exact", "float64"] = "exact"
    """How a count is scaled by its ratio: in integers, or truncated from float64 (public code),
    which loses one token at some sizes, since 49 * (1 / 49) < 1."""
    text_sign: Literal[1, -1] = 1
    """Sign of the text score; published work disagrees on it."""
    text_scope: Literal["remainder", "all"] = "remainder"
    """Filter the text score over what is left, or over all with kept patches at the minimum."""
    centres_of: Literal["remainder", "channels"] = "remainder"
    """What the centres' ratio multiplies: tokens left, or the channel count (public code)."""
    cluster_keys: Literal["aligned", "misaligned"] = "aligned"
    """`misaligned`: position j of the remainder takes key j of all patches (public code)."""
    merge: Literal["normalised", "raw"] = "normalised"
    """Whether the weights of a merged token sum to one."""
    rest: Literal["always", "with_centres"] = "always"
    """When the token that sums up everything else is kept."""
    text_weight: float = 50.0
    """Weight of the text score beside the key similarity when members are chosen."""
    members: int = 32
    """Tokens that each centre absorbs at most."""
    neighbours: int = 20
    """Neighbours of the outlier factor over visual and text scores."""
    centre_neighbours: int = 10
    """Neighbours of the outlier factor that counts the centres."""
    outlier_threshold: float = 1.5
    """A local outlier factor above this is an outlier (scikit-learn's `auto`)."""
    seed: int = 0
    """Seed of the `random` method."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if allowed := get_args(hint):
                if value not in allowed or isinstance(value, bool):
                    raise ConfigError(f"{field.name} is {value!r}; allowed: {_listing(allowed)}")
            elif not _is_instance(value, hint):
                raise ConfigError(f"{field.name} is {value!r}; expected {hint.__name__}")
        for name in ("members", "neighbours", "centre_neighbours"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")

    def with_options(self, **options: Any) -> CompressionConfig:
        """A copy with some options changed.

        Raises: ConfigError naming an unknown option or a value out of range."""
        names = [field.name for field in fields(self)]
        for name in options:
            if name not in names:
                raise ConfigError(f"unknown option {name!r}; known: {_listing(names)}")
        return replace(self, **options)

    def with_text_options(self, **options: str) -> CompressionConfig:
        """`with_options` for values that come as text, from a command line.

        Raises: ConfigError, also for text that is no value of the option's type."""
        hints = get_type_hints(type(self))
        return self.with_options(
            **{name: _parse(name, text, hints.get(name, str)) for name, text in options.items()}
        )


PRESETS: dict[str, CompressionConfig] = {
    "corrected": CompressionConfig(),
    "faithful": CompressionConfig(
        question_source="prompt_first_line",
        text_pooling="last_position",
        patch_layernorm=False,
        outliers="all",
        scaling="float64",
        text_scope="all",
        centres_of="channels",
        cluster_keys="misaligned",
        merge="raw",
        rest="with_centres",
    ),
}


def preset(name: str, **options: Any) -> CompressionConfig:
    """The named preset with options changed.

    Raises: ConfigError naming an unknown preset or option."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known: {_listing(PRESETS)}")
    return PRESETS[name].with_options(**options)


@dataclass(frozen=True)
class TokenBudget:
    """How many tokens the pictures of a question may become: what the filter finds (no field set),
    at most `max_tokens`, exactly `tokens`, exactly a `ratio` of the patches (to the nearest whole
    token, at least one), as many as let the first token of the answer come within `ttft_ms`
    milliseconds, or `full`: all of them, uncompressed. Several pictures share `tokens` and
    `max_tokens` equally."""

    tokens: int | None = None
    max_tokens: int | None = None
    full: bool = False
    ratio: float | None = None
    ttft_ms: float | None = None

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name)]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} exclude each other; give one")
        for name in ("tokens", "max_tokens"):
            value = getattr(self, name)
            if value is not None and not (_is_instance(value, int) and value >= 1):
                raise ConfigError(f"{name} is {value!r}; expected an integer of at least 1")
        if self.ratio is not None and not (
            isinstance(self.ratio, (int, float)) and self.ratio is not True and 0 < self.ratio <= 1
        ):
            raise ConfigError(f"ratio is {self.ratio!r}; expected above 0, up to 1")
        if self.ttft_ms is not None and not (
            _is_instance(self.ttft_ms, float) and 0 < self.ttft_ms < math.inf
        ):
            raise ConfigError(f"ttft_ms is {self.ttft_ms!r}; expected milliseconds above 0")

    def bounds(self, num_patches: int, num_images: int = 1) -> list[tuple[int, int]]:
        """The least and most tokens for each of the pictures of a question, of `num_patches` each;
        what cannot be shared equally goes to the first ones.

        Raises: ConfigError when `tokens` asks for more tokens than there are patches, there is not
        one token for each picture, or only a runner that knows its machine can tell (`ttft_ms`)."""
        if self.ttft_ms is not None:
            raise ConfigError("ttft_ms is for one question at a time, put to a VLM or its chat")
        everything, several = num_patches * num_images, f"{num_images} images"
        if self.full:
            return [(num_patches, num_patches)] * num_images
        if self.ratio is not None:
            count = max(1, round(self.ratio * num_patches))
            return [(count, count)] * num_images
        # A prompt that speaks of an image needs at least one token of it.
        for name in ("tokens", "max_tokens"):
            if (getattr(self, name) or num_images) < num_images:
                raise ConfigError(f"{name} is {getattr(self, name)}, which {several} cannot share")
        if self.tokens is not None:
            if self.tokens > everything > 0:
                owner = "an image has" if num_images == 1 else f"{several} have"
                raise ConfigError(f"tokens is {self.tokens}, but {owner} only {everything} patches")
            return [(share, share) for share in _shares(self.tokens, num_images)]
        shares = _shares(self.max_tokens or everything, num_images)
        return [(1, min(share, num_patches)) for share in shares]


def _shares(total: int, parts: int) -> Sequence[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]


@dataclass(frozen=True)
class GenerationConfig:
    """How the language model picks the tokens of an answer, and where the answer ends. The
    default is greedy: always the likeliest token."""

    max_new_tokens: int = 128
    """The longest answer."""
    temperature: float = 0.0
    """What the logits are divided by before a token is drawn; 0 draws nothing: greedy."""
    top_k: int | None = None
    """Draw from this many of the likeliest tokens."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens whose mass is at least this."""
    repetition_penalty: float = 1.0
    """Makes tokens that the answer already has less likely (above 1); the prompt's are free, since
    an answer may name what was asked about."""
    seed: int | None = None
    """The same seed draws the same answer; None draws another one each time."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; neither they nor what follows are part of it."""
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
