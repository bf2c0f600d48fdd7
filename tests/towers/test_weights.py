"""Weights reach Paddle layers whole, once, and in the right orientation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from paddle import nn

from paddle_recomp.checkpoint import Checkpoint, open_checkpoint
from paddle_recomp.errors import CheckpointError
from paddle_recomp.towers.weights import load_part

GOLDEN = Path(__file__).parents[1] / "golden" / "hf_llava_tiny"


class FakeCheckpoint:
    """A checkpoint with one part of given parameters."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays

    def parameters(self, part: str) -> Iterator[tuple[str, np.ndarray]]:
        yield from ((name.replace("_", "."), array) for name, array in self.arrays.items())


def load(layer: nn.Layer, **arrays: np.ndarray) -> None:
    load_part(FakeCheckpoint(**arrays), "part", layer)  # type: ignore[arg-type]


def test_square_matrices_are_transposed_too() -> None:
    layer = nn.Linear(3, 3)
    matrix = np.arange(9, dtype=np.float32).reshape(3, 3)
    load(layer, weight=matrix, bias=np.zeros(3, np.float32))
    np.testing.assert_array_equal(layer.weight.numpy(), matrix.T)


def test_missing_extra_and_misshapen_parameters_are_named() -> None:
    weight, bias = np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
    with pytest.raises(CheckpointError, match="bias"):
        load(nn.Linear(3, 2), weight=weight)
    with pytest.raises(CheckpointError, match=r"extra.*no place"):
        load(nn.Linear(3, 2), weight=weight, bias=bias, extra=bias)
    with pytest.raises(CheckpointError, match=r"weight.*\[2, 4\].*\[4, 2\]|weight.*\[2, 4\]"):
        load(nn.Linear(3, 2), weight=np.zeros((2, 4), np.float32), bias=bias)


def test_half_precision_is_cast_to_the_layer() -> None:
    layer = nn.Linear(2, 2)
    load(layer, weight=np.full((2, 2), 0.5, np.float16), bias=np.full(2, 0.25, np.float16))
    assert layer.weight.numpy().dtype == np.float32
    np.testing.assert_array_equal(layer.weight.numpy(), 0.5)


@pytest.fixture(scope="module")
def golden_checkpoint() -> Checkpoint:
    return open_checkpoint(GOLDEN / "llava", GOLDEN / "clip")


def test_progress_hears_every_byte(golden_checkpoint: Checkpoint) -> None:
    from paddle_recomp.towers.projector import Mlp2xGelu

    heard: list[int] = []
    layer = Mlp2xGelu(golden_checkpoint.spec.projector)
    load_part(golden_checkpoint, "projector", layer, on_tensor=heard.append)
    assert sum(heard) == golden_checkpoint.num_bytes("projector")
