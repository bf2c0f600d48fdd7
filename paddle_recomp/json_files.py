"""The one reader of JSON objects in files, strict where Python's own is lenient: the text is UTF-8;
a key that comes twice, NaN, Infinity and half a character are refused; a file holds an object."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paddle_recomp.errors import CheckpointError, CheckpointNotFoundError, RecompError

_EXCERPT = 60
"""Characters of a value that a message shows."""
_NAMES = 20
"""Names that a message lists."""
_LARGEST = 256_000_000
"""Bytes of a file that is read as a whole."""
_DEEPEST = 100
"""Levels of lists and objects in one another. Python's own functions fail at about ten times that
number."""
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
    try:
        about = path.stat()
        # A pipe would be waited for, perhaps for ever.
        if not stat.S_ISREG(about.st_mode):
            raise broken(f"{path} cannot be read: it is not a regular file")
        if about.st_size > _LARGEST:
            raise broken(f"{path} has {about.st_size} bytes; expected at most {_LARGEST}")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise missing(f"there is no {path}") from None
    except OSError as error:
        raise broken(f"{path} cannot be read: {error.strerror or error}") from error


def parse_json(
    text: str | bytes, name: str, broken: type[RecompError] = CheckpointError
) -> dict[str, Any]:
    """The object in a JSON text; `name` says in messages where it stands.

    Raises: `broken`."""
    try:
        # Of bytes, Python would guess the encoding.
        text = text.decode("utf-8") if isinstance(text, bytes) else text
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
    return _cut(" ".join(str(text).split()), longest)


def listed(names: Iterable[str]) -> str:
    """Names from a file for a message: the first of them, each on one line."""
    some = [one_line(name) for name in names]
    return ", ".join(some[:_NAMES]) + (f" and {len(some) - _NAMES} more" if some[_NAMES:] else "")


def _cut(line: str, longest: int) -> str:
    line = line if len(line) <= longest else f"{line[:longest]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _check_content(value: object) -> None:
    """Refuses half characters and what is nested too deeply, without recursion.

    Raises: ValueError."""
    level, depth = [value], 0
    while level:
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} deep")
        below: list[object] = []
        for item in level:
            if isinstance(item, str) and not item.isascii() and _HALF.search(item):
                raise ValueError(f"{shown(item)} has half a character (a lone surrogate) in it")
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
        level, depth = below, depth + 1


def number_of(path: Path, fields: dict[str, Any], key: str, default: float | None = None) -> float:
    """A finite number among the fields of a file.

    Raises: CheckpointError when it is missing without a default, or not a number."""
    value = fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value - value != 0:
        raise CheckpointError(f"{path}: {key} is {value!r}; expected a number")
    return float(value)


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
