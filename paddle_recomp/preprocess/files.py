"""Reading the small JSON files of a checkpoint, with one clear error for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paddle_recomp.errors import CheckpointError, CheckpointNotFoundError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises: CheckpointNotFoundError when it is not there; CheckpointError when it is not a JSON
    object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointNotFoundError(f"there is no {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; expected an object")
    return value


def number_of(path: Path, fields: dict[str, Any], key: str, default: float | None = None) -> float:
    """A finite number among the fields of a file.

    Raises: CheckpointError when it is missing without a default, or not a number."""
    value = fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value - value != 0:
        raise CheckpointError(f"{path}: {key} is {value!r}; expected a number")
    return float(value)
