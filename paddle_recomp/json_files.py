"""The one reader of JSON objects in files, strict where Python's own is lenient: the text is UTF-8;
a key that comes twice, NaN, Infinity and half a character are refused; a file holds an object."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

from paddle_recomp.errors import CheckpointError, CheckpointNotFoundError, RecompError
from paddle_recomp.files import read_file
from paddle_recomp.limits import limits, the_limit

_EXCERPT = 60
"""Characters of a value that a message shows."""
_NAMES = 20
"""Names that a message lists."""
_HALF = re.compile(r"[\ud800-\udfff]")
"""A surrogate, which is half a character: no text of UTF-8 has one."""


def read_json(
    path: Path,
    broken: type[RecompError] = CheckpointError,
    missing: type[RecompError] = CheckpointNotFoundError,
) -> dict[str, Any]:
    """The object in a JSON file.

    Raises: `missing` when the file is not there; `broken` when it cannot be read or is not a JSON
    object."""
    return parse_json(read_bytes(path, broken, missing), str(path), broken)


def read_bytes(path: Path, broken: type[RecompError], missing: type[RecompError]) -> bytes:
    """The content of a small regular file. Raises: as `read_json`."""
    return read_file(path, broken, missing)


def parse_json(
    text: str | bytes, name: str, broken: type[RecompError] = CheckpointError
) -> dict[str, Any]:
    """The object in a JSON text; `name` says in messages where it stands.

    Raises: `broken`."""
    try:
        # Of bytes, Python would guess the encoding.
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        # Lists of lists of nothing take twenty times the memory of their text.
        if (values := sum(map(text.count, ",[{"))) > limits().json_values:
            raise ValueError(f"it has {values} values; {the_limit('json_values')}")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        _check_content(value)
    except (ValueError, RecursionError) as error:
        raise broken(f"{name} is not JSON: {one_line(error, 200)}") from None
    if not isinstance(value, dict):
        raise broken(f"{name} holds {shown(value)}; expected a JSON object")
    return value


def shown(value: object) -> str:
    """A JSON value for a message: short, on one line, with nothing that moves a terminal's
    cursor."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return _cut(json.dumps(value, ensure_ascii=False), _EXCERPT)


def one_line(text: object, longest: int = _EXCERPT) -> str:
    """A text from a file or a library for a message: on one line, cut behind so many characters,
    and control characters as escapes."""
    # White space and escapes make a line shorter or longer, but never from nothing.
    return _cut(" ".join(str(text)[: 20 * longest].split()), longest)


def listed(names: Iterable[str]) -> str:
    """Names from a file for a message: the first of them, each on one line."""
    some = [one_line(name) for name in names]
    return ", ".join(some[:_NAMES]) + (f" and {len(some) - _NAMES} more" if some[_NAMES:] else "")


def _cut(line: str, longest: int) -> str:
    line = line if len(line) <= longest else f"{line[:longest]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _check_content(value: object) -> None:
    """Refuses half characters, numbers that do not fit where numbers are used, and what is nested
    too deeply, without recursion.

    Raises: ValueError."""
    bounds = limits()
    # Python itself reads no more digits than 4300.
    largest = 10 ** min(bounds.json_digits, 4300)
    level, depth = [value], 0
    while level:
        if depth > bounds.json_depth:
            raise ValueError(
                f"it is nested more than {bounds.json_depth} deep; {the_limit('json_depth')}"
            )
        below: list[object] = []
        for item in level:
            if isinstance(item, str):
                if not item.isascii() and _HALF.search(item):
                    raise ValueError(f"{shown(item)} has half a character (a lone surrogate) in it")
            elif isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, float):
                if math.isinf(item):
                    raise ValueError("it has a number above 1.8e308, which is no float64")
            elif isinstance(item, int) and not -largest < item < largest:
                digits = len(str(abs(item)))
                raise ValueError(
                    f"it has an integer of {digits} digits; {the_limit('json_digits')}"
                )
        level, depth = below, depth + 1


def number_of(path: Path, fields: dict[str, Any], key: str, default: float | None = None) -> float:
    """A finite number among the fields of a file.

    Raises: CheckpointError when it is missing without a default, or not a number."""
    value = fields.get(key, default)
    if not is_number(value):
        raise CheckpointError(f"{path}: {key} is {one_line(repr(value))}; expected a number")
    return float(value)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number that float64 has; an integer may be too large for that."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python keeps the last of two equal keys; another reader keeps the first."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {one_line(repr(key))} appears twice")
        found[key] = value
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
