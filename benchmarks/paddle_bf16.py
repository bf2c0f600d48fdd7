"""The time of a vision tower in Paddle Inference: in float32, with all of it in bfloat16, and as an
export saves it, where sums, scores and the last two layers stay in float32.

    python -m benchmarks.paddle_bf16 [--shape tiny-llava-1.1b] [--threads 2] [--runs 9]

The weights are random, which does not matter for the time. All are run in turn, in one process; the
table has medians and the medians of the pairs. It needs 4 bytes of disk for each weight, and four
times as much memory."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import paddle

from benchmarks.random_checkpoint import SHAPES, spec_of
from export.convert import PADDLE_FILES, save_layer
from export.float32 import keep_float32
from export.graphs import VisionGraph
from export.parity import sample_inputs
from paddle_recomp.backends.paddle_inference import Predictor
from paddle_recomp.bundle.comparison import mean_cosine
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.vlm.demo import DEMO


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=[DEMO, *sorted(SHAPES)], default="tiny-llava-1.1b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()

    paddle.seed(0)
    spec = spec_of(options.shape)
    layer = VisionGraph(spec, CompressionConfig())
    layer.eval()
    names = layer.signature.outputs
    inputs = sample_inputs(layer.signature.inputs, spec, batch=1)
    with tempfile.TemporaryDirectory() as folder:
        stem = Path(folder, "vision")
        save_layer(layer, spec, stem)
        del layer
        program, params = (Path(f"{stem}{end}") for end in PADDLE_FILES)
        kept = Path(folder, "kept.json")
        kept.write_text(keep_float32(program.read_text(encoding="utf-8")), encoding="utf-8")
        runs = {
            "float32": Predictor(program, params, threads=options.threads),
            "float32, as saved": Predictor(kept, params, threads=options.threads),
            "all in bfloat16": Predictor(program, params, True, threads=options.threads),
            "bfloat16, as saved": Predictor(kept, params, True, threads=options.threads),
        }
    found = {name: one.run(inputs, names) for name, one in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.runs):
        for name, one in runs.items():
            start = time.perf_counter()
            one.run(inputs, names)
            times[name].append(time.perf_counter() - start)

    first, third = (np.array(times[name]) for name in ("float32", "all in bfloat16"))
    print(f"{options.shape}, {options.threads} threads, medians of {options.runs} rounds\n")
    print("| | s | speed | against all in bfloat16 |", *(f" {name} |" for name in names), sep="")
    print("|---" * (4 + len(names)) + "|")
    for name, taken in times.items():
        ratios = (float(np.median(one / np.array(taken))) for one in (first, third))
        cosines = (mean_cosine(found["float32"][key], found[name][key]) for key in names)
        cells = [f"{np.median(taken):.3f}", *(f"{one:.2f}" for one in ratios)]
        print(f"| {name} | {' | '.join([*cells, *(f'{one:.6f}' for one in cosines)])} |")


if __name__ == "__main__":
    main()
