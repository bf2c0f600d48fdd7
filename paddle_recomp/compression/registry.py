"""All compression methods: each file of `methods/` declares one or more. No paddle here: a
declaration is read without it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping

from paddle_recomp.compression import methods
from paddle_recomp.compression.method import Method
from paddle_recomp.errors import ConfigError


def _declared() -> Iterator[Method]:
    """The declarations of all files, in the order of the file names."""
    for file in pkgutil.iter_modules(methods.__path__):
        module = importlib.import_module(f"{methods.__name__}.{file.name}")
        yield from (value for value in vars(module).values() if isinstance(value, Method))


def _by_name(declared: Iterator[Method]) -> dict[str, Method]:
    found: dict[str, Method] = {}
    for method in declared:
        if found.get(method.name) is method:
            continue  # A file imported the declaration of another one.
        if method.name in found:
            raise ValueError(f"two compression methods are called {method.name!r}")
        found[method.name] = method
    return found


METHODS: Mapping[str, Method] = _by_name(_declared())


def get_method(name: str) -> Method:
    """The method of that name.

    Raises: ConfigError listing all methods."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]
