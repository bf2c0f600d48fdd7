"""The library `tokenizers`, which is written in Rust, believes a tokenizer.json. It raises plain
`Exception`, and where it panics a `BaseException`, which no `except Exception` sees: here both
become errors of ours, and what would make it panic or fill the memory is looked for when a file is
read."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from tokenizers import Tokenizer

from paddle_recomp.errors import CheckpointError
from paddle_recomp.json_files import one_line
from paddle_recomp.limits import limits, the_limit

_P = ParamSpec("_P")
_T = TypeVar("_T")


def guarded(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """A function that calls the library. Its errors become CheckpointError: a text does not make it
    fail, only a file does."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            panic = type(error).__module__ == "pyo3_runtime"
            if not panic and type(error) is not Exception:
                raise
            raise CheckpointError(
                f"the tokenizer's file makes its library fail: {one_line(error, 200)}"
            ) from None

    return run


@guarded
def check(tokenizer: Tokenizer) -> None:
    """Raises: CheckpointError for what the library reads and cannot use."""
    processor = tokenizer.post_processor
    if processor is not None:
        for part in _parts(json.loads(processor.__getstate__())):
            if part.get("type") == "TemplateProcessing":
                _check_template(part)
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    left_out = max(vocabulary.values(), default=-1) + 1 - len(vocabulary)
    # The library lists each of them when it writes the file.
    if left_out > limits().token_holes:
        raise CheckpointError(
            f"its vocabulary leaves out {left_out} ids; {the_limit('token_holes')}"
        )


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.get("processors", ()):
            yield from _parts(inner)


def _check_template(part: dict[str, Any]) -> None:
    known = part.get("special_tokens", {})
    for piece in (*part.get("single", ()), *part.get("pair", ())):
        name = piece.get("SpecialToken", {}).get("id")
        if name is not None and name not in known:
            raise CheckpointError(
                f"its post_processor writes the special token {one_line(name)}, which its "
                "special_tokens do not have"
            )
