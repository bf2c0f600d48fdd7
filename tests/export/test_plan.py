"""What an export is asked for is refused before any work where it does not fit."""

from __future__ import annotations

import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from export.calibration import Quantisation
from export.plan import ExportPlan
from export.steps import steps_of
from paddle_recomp.errors import ConfigError


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"precision": "int3"}, "unknown precision 'int3'; known: fp32, int8"),
        ({"operators": "magic"}, "unknown operators 'magic'; known: "),
        ({"decoder": "int3"}, "unknown precision 'int3' of the decoder; known: .*int4, none"),
        ({"quantisation": Quantisation()}, "precision 'fp32' is not quantised; choose int8"),
        ({"paddle_int8": Path(sys.executable)}, "add --paddle"),
        ({"ranked": True}, "--report needs --precision int8"),
    ],
)
def test_what_does_not_fit_is_refused(choices: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ExportPlan(**choices)


def test_a_plan_is_fixed() -> None:
    with pytest.raises(FrozenInstanceError):
        ExportPlan().precision = "int8"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("choices", "names"),
    [
        ({}, "vision, text, compress, decoder, files"),
        ({"decoder": "none"}, "vision, text, compress, files"),
        ({"fused": True}, "vision, text, compress, encoder, decoder, files"),
        ({"precision": "int8"}, "samples, vision, text, compress, int8, decoder, files"),
        (
            {"paddle": True, "fused": True},
            "vision, text, compress, encoder, paddle encoder, decoder, files",
        ),
        (
            {"paddle": True, "paddle_int8": Path(sys.executable)},
            "samples, vision, text, compress, paddle int8, decoder, files",
        ),
    ],
)
def test_the_steps_are_those_that_are_asked_for(choices: dict[str, Any], names: str) -> None:
    assert ", ".join(step.name for step in steps_of(ExportPlan(**choices))) == names
