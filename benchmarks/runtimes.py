"""The vision tower in every runtime and precision that some bundles have, against the first.

    python -m benchmarks.runtimes build/fp32 [build/int8 ...]

The bundles are of one checkpoint. Each is run in turn with the first bundle in ONNX Runtime, in one
process; the table has the medians of the pairs, and cosines to the first bundle in ONNX Runtime.
This is for large towers. If a run takes only milliseconds, the spinning threads of the other
runtime disturb the measurement."""

from __future__ import annotations

import argparse
from pathlib import Path

import onnxruntime

from benchmarks.compressor import median_pair
from export.samples import load_pictures
from export.verify import runtimes
from paddle_recomp.backends.onnx import OnnxBackend
from paddle_recomp.bundle import open_bundle
from paddle_recomp.bundle.comparison import mean_cosine
from paddle_recomp.bundle.contract import OUTPUTS

NAMES = {
    "onnx": "ONNX Runtime",
    "openvino": "ONNX Runtime, OpenVINO",
    "openvino bf16": "ONNX Runtime, OpenVINO with bf16",
    "paddle": "Paddle Inference",
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--images", type=Path, help="a folder of pictures; default: the demo's")
    options = parser.parse_args()

    bundles = [open_bundle(folder) for folder in options.bundles]
    first = bundles[0]
    inputs = {"pixel_values": first.image_processor(load_pictures(options.images, options.batch))}
    reference = OnnxBackend(first, threads=options.threads)
    expected = reference.run("vision", inputs)

    names = OUTPUTS["vision"]
    shape = " x ".join(str(side) for side in inputs["pixel_values"].shape)
    print(
        f"vision {shape}, {options.threads} threads, onnxruntime {onnxruntime.__version__}; first: "
        f"{first.folder} in ONNX Runtime {first.precision}, medians of {options.runs} pairs\n"
    )
    columns = ("bundle", "runtime", "precision", "s", "first, s", "speed", *names)
    print(f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", sep="\n")
    for bundle in bundles:
        for name, precision, backend in runtimes(bundle, options.threads):
            if name == "onnx" and bundle is first:
                continue
            found = backend.run("vision", inputs)
            ours, theirs, ratio = median_pair(
                lambda run=backend.run: run("vision", inputs),  # type: ignore[misc]
                lambda: reference.run("vision", inputs),
                options.runs,
            )
            cells = (
                bundle.folder.name,
                NAMES[name],
                precision,
                f"{ours / 1e3:.3f}",
                f"{theirs / 1e3:.3f}",
                f"{ratio:.2f}",
                *(f"{mean_cosine(expected[key], found[key]):.5f}" for key in names),
            )
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
