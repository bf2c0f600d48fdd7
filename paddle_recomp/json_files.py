"""The one reader of JSON objects in files, strict where Python's own is lenient: a key that comes
twice, NaN and Infinity are refused, and a file holds an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paddle_recomp.errors import CheckpointError, CheckpointNotFoundError, RecompError

_EXCERPT = 60
"""Characters of a value that a message shows."""


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
    """The content of a small file. Raises: as `read_json`."""
    try:
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
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise broken(f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise broken(f"{name} holds {shown(value)}; expected a JSON object")
    return value


def shown(value: object) -> str:
    """A JSON value for a message: short, on one line."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…"


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
            raise ValueError(f"key {key[:_EXCERPT]!r} appears twice")
        found[key] = value
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
