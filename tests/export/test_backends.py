"""The same questions to every backend: eager Paddle, ONNX Runtime, Paddle Inference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.choices import budgets
from paddle_recomp.backends.base import Backend
from paddle_recomp.backends.eager import EagerBackend
from paddle_recomp.backends.onnx import OnnxBackend
from paddle_recomp.backends.paddle_inference import PaddleInferenceBackend
from paddle_recomp.backends.sessions import available_providers
from paddle_recomp.bundle import Bundle
from paddle_recomp.bundle.contract import INPUTS, OUTPUTS, Graph
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.config import TokenBudget
from paddle_recomp.errors import BundleError, ConfigError, DeviceError, FeatureError
from paddle_recomp.vlm.cached_backend import CachedBackend
from paddle_recomp.vlm.feature_cache import FeatureCache
from paddle_recomp.vlm.loading import load_front_end

from .conftest import GOLDEN

BACKENDS = ("eager", "onnx", "paddle")


@pytest.fixture(scope="module")
def backends(golden_checkpoint: Checkpoint, golden_bundle: Bundle) -> dict[str, Backend]:
    return {
        "eager": EagerBackend(golden_checkpoint, CompressionConfig()),
        "onnx": OnnxBackend(golden_bundle, threads=1),
        "paddle": PaddleInferenceBackend(golden_bundle, threads=1),
    }


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "expected.npz"))


@pytest.fixture(scope="module")
def inputs(golden_checkpoint: Checkpoint, golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Eight different images and questions, each with another budget."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(8, *golden["pixels"].shape[1:])).astype(np.float32)
    pixels[:2] = golden["pixels"]
    spec = golden_checkpoint.spec.text
    ids = rng.integers(0, spec.vocab_size, size=(8, spec.max_positions))
    ids[:2] = spec.eos_token_id
    ids[:2, : golden["text_ids"].shape[1]] = golden["text_ids"]
    bounds = budgets(8, golden_checkpoint.spec.vision.num_patches)
    return {"pixel_values": pixels, "question_ids": ids, "token_bounds": bounds}


@pytest.mark.parametrize("name", BACKENDS)
def test_towers_equal_transformers(
    name: str,
    backends: dict[str, Backend],
    inputs: dict[str, np.ndarray],
    golden: dict[str, np.ndarray],
) -> None:
    vision = backends[name].run("vision", {"pixel_values": inputs["pixel_values"]})
    text = backends[name].run("text", {"question_ids": inputs["question_ids"]})
    for found, expected in (
        (vision["features"], golden["hidden_m2"][:, 1:]),
        (vision["patch_embeds"], golden["patch_proj_ln"][:, 1:]),
        (text["text_embeds"], golden["text_embed"]),
    ):
        np.testing.assert_allclose(found[:2], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_every_graph_equals_eager(
    name: str, batch: int, backends: dict[str, Backend], inputs: dict[str, np.ndarray]
) -> None:
    arrays = {key: value[:batch] for key, value in inputs.items()}
    graphs: tuple[Graph, ...] = ("vision", "text", "compress", "encoder")
    for graph in graphs:
        given = {key: arrays[key] for key in INPUTS[graph]}
        expected = backends["eager"].run(graph, given)
        found = backends[name].run(graph, given)
        assert tuple(found) == OUTPUTS[graph]
        for key, value in expected.items():
            assert found[key].dtype == value.dtype
            if value.dtype.kind == "i":
                np.testing.assert_array_equal(found[key], value)
            else:
                np.testing.assert_allclose(found[key], value, atol=1e-5 * np.abs(value).max())
        arrays |= expected


@pytest.mark.parametrize("name", BACKENDS)
def test_the_budget_is_chosen_at_run_time(
    name: str, backends: dict[str, Backend], inputs: dict[str, np.ndarray]
) -> None:
    def count(budget: TokenBudget) -> list[int]:
        bounds = np.array(budget.bounds(64) * 8, dtype=np.int64)
        return (
            backends[name]
            .run("encoder", {**inputs, "token_bounds": bounds})["token_count"]
            .tolist()
        )

    assert count(TokenBudget(tokens=17)) == [17] * 8
    assert max(count(TokenBudget(max_tokens=5))) <= 5
    assert len(set(count(TokenBudget()))) > 1
    assert count(TokenBudget(full=True)) == [64] * 8


@pytest.mark.parametrize("name", BACKENDS)
def test_nan_is_an_error(
    name: str, backends: dict[str, Backend], inputs: dict[str, np.ndarray]
) -> None:
    with pytest.raises(FeatureError, match="NaN"):
        backends[name].run("vision", {"pixel_values": inputs["pixel_values"] * np.nan})


def test_a_missing_provider_is_an_error(golden_bundle: Bundle) -> None:
    missing = [
        name for name in ("cuda", "tensorrt", "openvino") if name not in available_providers()
    ]
    for name in [*missing, "tpu", "CPUExecutionProvider"]:
        with pytest.raises(DeviceError, match=rf"{name}.*installed: cpu"):
            OnnxBackend(golden_bundle, [name])
        with pytest.raises(DeviceError, match=name):
            OnnxBackend(golden_bundle, ["cpu", name])
    with pytest.raises(ConfigError):
        OnnxBackend(golden_bundle, [])
    with pytest.raises(ConfigError):
        OnnxBackend(golden_bundle, threads=0)


def test_a_graph_is_read_when_it_is_used(copy: Path) -> None:
    from paddle_recomp.bundle import open_bundle

    backend = OnnxBackend(open_bundle(copy))
    data = bytearray((copy / "vision.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "vision.onnx").write_bytes(data)
    ids = np.zeros((1, 77), dtype=np.int64)
    assert backend.run("text", {"question_ids": ids})["text_embeds"].shape[0] == 1
    with pytest.raises(BundleError, match=r"vision\.onnx was changed"):
        backend.run("vision", {"pixel_values": np.zeros((1, 3, 224, 224), np.float32)})


def test_each_tower_has_features_of_its_own_in_a_cache(
    golden_checkpoint: Checkpoint, golden_bundle: Bundle, demo_bundle: Bundle
) -> None:
    """The checkpoint's in eager Paddle, the bundle's in each runtime, another bundle's."""
    cache = FeatureCache()
    front_ends = [
        load_front_end(golden_checkpoint, cache=cache),
        load_front_end(golden_bundle, cache=cache),
        load_front_end(golden_bundle, backend="paddle", cache=cache),
        load_front_end(demo_bundle, cache=cache),
        load_front_end(demo_bundle, cache=cache),
    ]
    towers = []
    for front_end in front_ends:
        assert isinstance(front_end.backend, CachedBackend)
        towers.append(front_end.backend.tower)
    assert len(set(towers)) == 4
    assert towers[-1] == towers[-2]
