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
from paddle_recomp.compression.config import CompressionConfig, preset
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
        ({"also": (preset("faithful"),)}, "share its towers: question_source is question"),
        ({"also": (CompressionConfig(members=5),)}, "would be called 'recoverable'"),
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
        ({}, "vision, text, compress, decoder, tokenizers, checksums"),
        (
            {"also": (CompressionConfig("uniform"),)},
            "vision, text, compress, compress uniform, decoder, tokenizers, checksums",
        ),
        ({"decoder": "none"}, "vision, text, compress, tokenizers, checksums"),
        ({"fused": True}, "vision, text, compress, encoder, decoder, tokenizers, checksums"),
        (
            {"precision": "int8"},
            "samples, vision, text, compress, int8, decoder, tokenizers, checksums",
        ),
        (
            {"paddle": True, "fused": True},
            "vision, text, compress, encoder, paddle encoder, decoder, tokenizers, checksums",
        ),
        (
            {"paddle": True, "paddle_int8": Path(sys.executable)},
            "samples, vision, text, compress, paddle int8, decoder, tokenizers, checksums",
        ),
    ],
)
def test_the_steps_are_those_that_are_asked_for(choices: dict[str, Any], names: str) -> None:
    assert ", ".join(step.name for step in steps_of(ExportPlan(**choices))) == names


def test_a_vision_graph_gives_what_all_compress_graphs_take() -> None:
    uniform, default = CompressionConfig("uniform"), CompressionConfig()
    alone = ExportPlan(config=uniform)
    both = ExportPlan(config=uniform, also=(default,))
    assert list(both.compressors) == ["uniform", "recoverable"]
    assert "patch_embeds" not in alone.signatures["vision"].outputs
    assert both.signatures["vision"] == ExportPlan().signatures["vision"]
    assert both.signatures["compress"] == alone.signatures["compress"]
    assert both.signatures["encoder"] == alone.signatures["encoder"]
