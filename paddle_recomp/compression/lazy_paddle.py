"""Paddle for the compressor, imported when a method runs, not when its declaration is read.

The light path reads declarations (names, options, stages) where no paddle is installed."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    value = getattr(importlib.import_module("paddle"), name)
    # From now on it is an ordinary attribute of this module.
    globals()[name] = value
    return value
