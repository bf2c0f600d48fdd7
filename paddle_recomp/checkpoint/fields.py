"""Strict reading of single fields of a JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddle_recomp.errors import CheckpointError
from paddle_recomp.json_files import is_number, one_line

Json = Mapping[str, Any]

_LARGEST = 2**53
"""The largest integer of a configuration: every reader of JSON has it exactly."""


def _wrong_type(name: str, value: object, expected: str) -> CheckpointError:
    if isinstance(value, (dict, list)):
        return CheckpointError(f"{name} is a {type(value).__name__}; expected {expected}")
    return CheckpointError(f"{name} is {one_line(repr(value))}; expected {expected}")


def _given(config: Json, name: str, default: Any) -> Any:
    """The field, or the default where it is absent or null; a default of None means required."""
    value = config.get(name)
    if value is None:
        value = default
    if value is None:
        raise CheckpointError(f"field {name!r} is missing")
    return value


def integer(config: Json, name: str, default: int | None = None) -> int:
    """Raises: CheckpointError when the field is missing or no integer."""
    value = _given(config, name, default)
    if type(value) is not int:
        raise _wrong_type(name, value, "an integer")
    if abs(value) > _LARGEST:
        raise _wrong_type(name, value, f"an integer of at most {_LARGEST}")
    return value


def number(config: Json, name: str, default: float | None = None) -> float:
    """Raises: CheckpointError when the field is missing or no positive finite number."""
    value = _given(config, name, default)
    if not is_number(value) or value <= 0:
        raise _wrong_type(name, value, "a positive number")
    return float(value)


def boolean(config: Json, name: str, default: bool | None = None) -> bool:
    """Raises: CheckpointError when the field is missing or no boolean."""
    value = _given(config, name, default)
    if type(value) is not bool:
        raise _wrong_type(name, value, "true or false")
    return value


def string(config: Json, name: str, default: str | None = None) -> str:
    """Raises: CheckpointError when the field is missing or no string."""
    value = _given(config, name, default)
    if type(value) is not str:
        raise _wrong_type(name, value, "a string")
    return value


def section(config: Json, name: str) -> Json:
    """Raises: CheckpointError when the field is missing or no object."""
    value = _given(config, name, None)
    if not isinstance(value, dict):
        raise _wrong_type(name, value, "an object")
    return value


def choice(config: Json, name: str, allowed: tuple[str, ...], default: str | None = None) -> str:
    """Raises: CheckpointError when the field is missing or none of those allowed."""
    value = string(config, name, default)
    if value not in allowed:
        raise CheckpointError(f"{name} is {one_line(repr(value))}; supported: {', '.join(allowed)}")
    return value


def integers(config: Json, name: str, default: int | None = None) -> tuple[int, ...]:
    """A field that holds one integer or a list of them.

    Raises: CheckpointError when it is missing or something else."""
    value = _given(config, name, default)
    values = value if isinstance(value, list) else [value]
    if not values or any(type(item) is not int or abs(item) > _LARGEST for item in values):
        raise _wrong_type(name, value, "an integer or a list of integers")
    return tuple(values)
