"""Every method against a loop that was written from its description alone, over four budgets."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest

from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.compression.method import MethodInputs
from paddle_recomp.compression.registry import METHODS
from paddle_recomp.types import Compressed
from tests.golden.methods.record import FOLDER, Expected, loops

from .conftest import CASES as RECORDED_RUNS


def test_every_method_has_a_golden_case() -> None:
    """`recoverable` has recorded runs of its authors' code instead."""
    assert RECORDED_RUNS
    assert set(METHODS) == {"recoverable", *(path.stem for path in FOLDER.glob("*.npz"))}
    assert set(METHODS) == {"recoverable", *loops()}


@pytest.mark.parametrize("name", sorted(loops()))
def test_a_method_equals_its_loop(name: str) -> None:
    golden, expected = dict(np.load(FOLDER / f"{name}.npz")), loops()[name]
    assert isinstance(expected, Expected)
    assert json.loads(str(golden["options"])) == dict(expected.options)
    config, method = CompressionConfig(name, **expected.options), METHODS[name]
    given = {
        key: paddle.to_tensor(golden[f"input_{key}"]) for key in method.inputs if key != "grid"
    }
    side = int(golden["owner"].shape[1] ** 0.5)
    grid = (side, side) if "grid" in method.inputs else None
    bounds = paddle.to_tensor(golden["bounds"])
    out = method.compress(MethodInputs(**given, grid=grid), bounds, config.options)
    found = Compressed(*(value.numpy() for value in out))
    for field in ("count", "index", "stage", "owner", "centre"):
        np.testing.assert_array_equal(getattr(found, field), golden[field], err_msg=field)
    np.testing.assert_allclose(found.tokens, golden["tokens"], atol=1e-5)
