"""Time of the exported compressor in ONNX Runtime, by itself and with the projector behind it.

    python -m benchmarks.compressor_onnx [--bundle INT8_BUNDLE]

A bundle of a model with the same vision tower gives the tower's time, for comparison.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import paddle
from paddle import nn
from rich.console import Console
from rich.table import Table

from benchmarks.compressor import crafted, median_pair
from benchmarks.random_checkpoint import SHAPES
from export.convert import convert_layer
from export.graphs import CompressGraph
from export.parity import compare, sample_inputs
from export.writing import write_model
from paddle_recomp.backends.onnx import OnnxBackend
from paddle_recomp.backends.sessions import open_session
from paddle_recomp.bundle import open_bundle
from paddle_recomp.bundle.contract import OUTPUTS
from paddle_recomp.commands.console import quiet_paddle
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.compression.eager import compress
from paddle_recomp.config import TokenBudget

SPEC = SHAPES["tiny-llava-1.1b"]
BATCH = 8
BUDGETS = {"dynamic": TokenBudget(), "exactly 64": TokenBudget(tokens=64)}
Arrays = dict[str, np.ndarray]


def write_graphs(folder: Path) -> dict[str, Path]:
    """compress.onnx of the shape with random weights, without (`bare`) and with its projector."""
    # The language model's width is then the tower's.
    width = SPEC.vision.hidden_size
    language = replace(SPEC.language, hidden_size=width, head_dim=width // SPEC.language.num_heads)
    bare = replace(SPEC, projector=replace(SPEC.projector, out_features=width), language=language)
    paths = {}
    for name, spec in (("bare", bare), ("projected", SPEC)):
        layer = CompressGraph(SPEC, CompressionConfig())
        if name == "bare":
            layer.projector = nn.Identity()
        layer.eval()
        with quiet_paddle():
            model = convert_layer("compress", layer, spec, folder)
        paths[name] = folder / f"{name}.onnx"
        write_model(model, paths[name])
    return paths


def tower_outputs(batch: int, budget: TokenBudget) -> Arrays:
    """The inputs of the compressor."""
    size = SPEC.vision.num_patches
    vision, text = crafted(batch, size, SPEC.vision.hidden_size, SPEC.vision.projection_dim)
    return {
        **{n: tensor.numpy() for n, tensor in vision._asdict().items() if tensor is not None},
        "text_embeds": text.numpy(),
        "token_bounds": np.array(budget.bounds(size) * batch, dtype=np.int64),
    }


def runner(graph: Path, threads: int) -> Callable[[Arrays], Any]:
    """The graph in ONNX Runtime on the CPU, with the settings that the library gives it."""
    session = open_session(graph, ["cpu"], threads)
    return lambda arrays: session.run(None, arrays)


def check(run: Callable[[Arrays], Any]) -> None:
    """Raises: ExportError when the graph without projector gives other tokens than Paddle."""
    size, spec = SPEC.vision.num_patches, SPEC.vision
    vision, text = crafted(BATCH, size, spec.hidden_size, spec.projection_dim)
    for budget in BUDGETS.values():
        expected = compress(vision, text, CompressionConfig(), budget)
        ordered = (
            *(expected.tokens, expected.count, expected.index),
            *(expected.stage, expected.owner, expected.centre),
        )
        found = dict(zip(OUTPUTS["compress"], run(tower_outputs(BATCH, budget)), strict=True))
        names = zip(OUTPUTS["compress"], ordered, strict=True)
        compare("compress", {name: tensor.numpy() for name, tensor in names}, found)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, help="For the time of its vision tower.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=31)
    options = parser.parse_args()
    bundle = None if options.bundle is None else open_bundle(options.bundle)
    if bundle is not None and bundle.num_patches != SPEC.vision.num_patches:
        parser.error(
            f"{options.bundle} has {bundle.num_patches} patches; expected the vision tower of "
            f"this benchmark, with {SPEC.vision.num_patches}"
        )
    with tempfile.TemporaryDirectory() as folder:
        paths = write_graphs(Path(folder))
        run = {name: runner(path, options.threads) for name, path in paths.items()}
    check(run["bare"])

    alone = Table("budget", "compressor ms", "with projector ms")
    batches = Table("budget", "graph", f"{BATCH} singles ms", f"batch of {BATCH} ms", "ratio")
    for name, budget in BUDGETS.items():
        many = tower_outputs(BATCH, budget)
        singles = [{k: v[i : i + 1] for k, v in many.items()} for i in range(BATCH)]
        bare, projected, _ = median_pair(
            lambda one=singles[0]: run["bare"](one),  # type: ignore[misc]
            lambda one=singles[0]: run["projected"](one),  # type: ignore[misc]
            options.runs,
        )
        alone.add_row(name, f"{bare:.2f}", f"{projected:.2f}")
        for graph in run:
            apart, together, ratio = median_pair(
                lambda g=graph, ones=singles: [run[g](one) for one in ones],  # type: ignore[misc]
                lambda g=graph, all_=many: run[g](all_),  # type: ignore[misc]
                options.runs,
            )
            batches.add_row(name, graph, f"{apart:.1f}", f"{together:.1f}", f"{ratio:.2f}")

    console = Console()
    console.print(
        f"N={SPEC.vision.num_patches}, C={SPEC.vision.hidden_size}, "
        f"P={SPEC.vision.projection_dim}, projector to {SPEC.projector.out_features}, float32, "
        f"onnxruntime {onnxruntime.__version__}, {options.threads} threads, "
        f"medians of {options.runs} pairs"
    )
    console.print(alone)
    console.print(batches)
    if bundle is not None:
        backend = OnnxBackend(bundle, threads=options.threads)
        pixels = sample_inputs(("pixel_values",), SPEC, batch=1)
        one = tower_outputs(1, TokenBudget())
        for graph in run:
            tower, compressor, share = median_pair(
                lambda: backend.run("vision", pixels),
                lambda g=graph: run[g](one),  # type: ignore[misc]
                min(options.runs, 15),
            )
            console.print(
                f"{bundle.precision} vision tower {tower:.0f} ms, {graph} {compressor:.2f} ms: "
                f"{100 * share:.2f}%"
            )


if __name__ == "__main__":
    paddle.seed(0)
    main()
