"""Compares an exported graph with the layer from which it was exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddle_recomp.bundle.comparison import relative_difference
from paddle_recomp.bundle.contract import Graph
from paddle_recomp.checkpoint import ModelSpec

from .errors import ExportError
from .shapes import dtype_of, shapes_of

TOLERANCE = 1e-4
"""Largest difference of a float output, relative to the largest value of the array."""
BATCH, WORDS = 5, 6


def sample_inputs(
    names: Sequence[str], spec: ModelSpec, batch: int = BATCH
) -> dict[str, np.ndarray]:
    """Noise, the same each time, in which a few patches stand out. Each image has another budget:
    the filter's own number, a cap, an exact number, everything. In a fifth image all visual scores
    have underflowed to zero."""
    rng, shapes, size = np.random.default_rng(0), shapes_of(spec), spec.vision.num_patches
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        shape = [batch, *(side if isinstance(side, int) else WORDS for side in shapes[name][1:])]
        arrays[name] = rng.normal(size=shape).astype(dtype_of(name))
    if "question_ids" in arrays:
        ids = rng.integers(0, spec.text.vocab_size, size=arrays["question_ids"].shape)
        ids[:, -1] = spec.text.eos_token_id
        arrays["question_ids"] = ids
    if "visual_score" in arrays:
        score = np.exp(2 * arrays["visual_score"])
        score = score / score.sum(axis=1, keepdims=True)
        score[4:5] = 0
        arrays["visual_score"] = score
    if "token_bounds" in arrays:
        eighth, quarter = max(size // 8, 1), max(size // 4, 1)
        budgets = [(1, size), (1, eighth), (quarter, quarter), (size, size)]
        arrays["token_bounds"] = np.array([budgets[i % 4] for i in range(batch)], dtype=np.int64)
    return arrays


Runner = Callable[[str | Path, Sequence[str], dict[str, np.ndarray]], dict[str, np.ndarray]]
"""A file, the names of its outputs in their order, its inputs -> its outputs."""


def compare_with_layer(
    graph: Graph, layer: Any, spec: ModelSpec, path: str | Path, run: Runner
) -> None:
    """Runs the Paddle layer and the written graph on the same inputs.

    Raises: ExportError when they differ."""
    import paddle

    names, inputs = layer.signature.outputs, sample_inputs(layer.signature.inputs, spec)
    with paddle.no_grad():
        values = layer({name: paddle.to_tensor(value) for name, value in inputs.items()})
    expected = {name: x.numpy() for name, x in zip(names, values, strict=False)}
    compare(graph, expected, run(path, names, inputs))


def run(
    path: str | Path, names: Sequence[str], inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The outputs of a graph file in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), inputs), strict=True))


def run_paddle(
    stem: str | Path, names: Sequence[str], inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The outputs of STEM.json and STEM.pdiparams in Paddle Inference on the CPU."""
    from paddle_recomp.backends.paddle_inference import Predictor

    predictor = Predictor(Path(f"{stem}.json"), Path(f"{stem}.pdiparams"))
    return predictor.run(inputs, names)


def compare(graph: Graph, expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    """Raises: ExportError naming the first output that differs, and by how much."""
    for name, value in expected.items():
        other = found[name]
        if value.shape != other.shape or value.dtype != other.dtype:
            raise ExportError(
                f"{graph}: {name} is {other.dtype} {list(other.shape)} when exported and "
                f"{value.dtype} {list(value.shape)} in eager Paddle"
            )
        difference = relative_difference(value, other)
        limit = TOLERANCE if value.dtype.kind == "f" else 0.0
        if not difference <= limit:
            raise ExportError(
                f"{graph}: {name} differs by {difference:.2g} of its largest value between eager "
                f"Paddle and the exported graph; allowed is {limit:g}"
            )
