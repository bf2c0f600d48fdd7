"""The configuration of a compression: a method's name with that method's options, and those of the
towers in front of it. No paddle here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from paddle_recomp.compression.registry import METHODS, get_method
from paddle_recomp.config import TowerOptions, listing, parse_option
from paddle_recomp.errors import ConfigError

DEFAULT_METHOD = "recoverable"
DEFAULT_PRESET = "corrected"

_TOWER_OPTIONS = tuple(one.name for one in fields(TowerOptions))


@dataclass(frozen=True, init=False)
class CompressionConfig:
    """A method with its options, and how the towers are read. The default is `corrected`."""

    method: str
    """A name in `registry.METHODS`."""
    towers: TowerOptions
    options: Any
    """The method's own options: an instance of its declared dataclass."""

    def __init__(self, method: str = DEFAULT_METHOD, **options: Any) -> None:
        """`options` are the method's own and those of `TowerOptions`, by name.

        Raises: ConfigError naming an unknown method or option, or a value out of range."""
        declared = get_method(method)
        known = (*_TOWER_OPTIONS, *declared.option_names)
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"unknown option {name!r} of method {method!r}; known: {listing(known)}"
                )
        towers = {name: value for name, value in options.items() if name in _TOWER_OPTIONS}
        own = {name: value for name, value in options.items() if name not in _TOWER_OPTIONS}
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "towers", TowerOptions(**towers))
        object.__setattr__(self, "options", declared.options(**own))

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain data: `CompressionConfig(**config.as_dict())` is the same again."""
        return {"method": self.method, **asdict(self.towers), **asdict(self.options)}

    def with_options(self, **options: Any) -> CompressionConfig:
        """A copy with some options changed. Another `method` takes over the options of the towers,
        and those of its own that both methods have from the same base.

        Raises: ConfigError naming an unknown method or option, or a value out of range."""
        given = self.as_dict()
        declared = get_method(options.get("method", self.method))
        # Two methods may use one name for two things; a field of one base is one thing.
        shared = [one.name for one in fields(declared.options) if one in fields(self.options)]
        kept = {"method", *_TOWER_OPTIONS, *shared}
        return CompressionConfig(**{k: v for k, v in given.items() if k in kept} | options)

    def with_text_options(self, **options: str) -> CompressionConfig:
        """`with_options` for values that come as text, from a command line.

        Raises: ConfigError, also for text that is no value of the option's type."""
        own = get_method(options.get("method", self.method))
        found: dict[str, Any] = {}
        for name, text in options.items():
            kind = TowerOptions if name in _TOWER_OPTIONS else own.options
            known = name in (*_TOWER_OPTIONS, *own.option_names)
            found[name] = parse_option(kind, name, text) if known else text
        return self.with_options(**found)


def _presets() -> dict[str, CompressionConfig]:
    found: dict[str, CompressionConfig] = {}
    for method in METHODS.values():
        for name, options in method.presets.items():
            if name in found:
                raise ValueError(f"two methods declare a preset {name!r}: the second is {method}")
            found[name] = CompressionConfig(method.name, **options)
    return found


PRESETS: dict[str, CompressionConfig] = _presets()
"""Named configurations, which methods declare."""


def preset(name: str, **options: Any) -> CompressionConfig:
    """The named preset with options changed.

    Raises: ConfigError naming an unknown preset or option."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known: {listing(PRESETS)}")
    return PRESETS[name].with_options(**options)
