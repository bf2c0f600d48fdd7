"""Prefill, decoding and memory of the ONNX decoder, in each precision, a process for each.

    python -m benchmarks.decoder build/checkpoints/tiny-llava-1.1b
    python -m benchmarks.decoder build/demo

For a checkpoint every precision is written into a temporary folder; a bundle is used as it is."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from paddle_recomp.bundle import DECODER_PRECISIONS, Bundle, DecoderInfo
from paddle_recomp.llm.onnx_decoder import OnnxDecoder
from paddle_recomp.vlm.loading import find
from paddle_recomp.vlm.machine import anonymous_memory, peak_memory

PROMPTS = (640, 128)
STEPS = 16


def measure(folder: Path, info: DecoderInfo, threads: int, repeats: int) -> dict[str, Any]:
    """Median seconds, and bytes; decoding behind the longest prompt, in a cache that just
    holds it and in one for the whole context."""
    start = time.perf_counter()
    model = OnnxDecoder(folder, info, threads=threads)
    found: dict[str, Any] = {"load": time.perf_counter() - start}
    embeds = np.random.default_rng(0).normal(0, 0.02, (1, max(PROMPTS), info.hidden_size))
    embeds = embeds.astype(np.float32)
    tight = max(PROMPTS) + STEPS

    def prefill(length: int, capacity: int) -> Any:
        return model.prefill(embeds[:, :length], np.array([length]), capacity)[1]

    prefill(max(PROMPTS), tight)
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for length in PROMPTS:
            begin = time.perf_counter()
            prefill(length, tight)
            times[f"prefill {length}"].append(time.perf_counter() - begin)
        for name, capacity in (("decode", tight), ("decode in a full cache", info.context)):
            state = prefill(max(PROMPTS), capacity)
            for _ in range(STEPS):
                begin = time.perf_counter()
                _, state = model.decode(np.array([5]), state)
                times[name].append(time.perf_counter() - begin)
    found |= {name: median(values) for name, values in times.items()}
    return found | {"peak": peak_memory(), "anonymous": anonymous_memory()}


def in_own_process(folder: Path, info: DecoderInfo, threads: int, repeats: int) -> dict[str, Any]:
    """`measure` in a process of its own, so that nothing else has taken memory."""
    about = json.dumps([str(folder), asdict(info), threads, repeats])
    command = [sys.executable, "-m", "benchmarks.decoder", "--measure", about]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def print_table(rows: dict[str, dict[str, Any]], console: Console) -> None:
    """One precision a line."""
    table = Table(box=None)
    table.add_column("")
    for name in (*(f"prefill {length}" for length in PROMPTS), "decode", "in a full cache"):
        table.add_column(name, justify="right")
    for name in ("load", "peak memory", "of it anonymous"):
        table.add_column(name, justify="right")
    for precision, row in rows.items():
        table.add_row(
            precision,
            *(f"{row[f'prefill {length}']:.3f} s" for length in PROMPTS),
            f"{1 / row['decode']:.1f}/s",
            f"{1 / row['decode in a full cache']:.1f}/s",
            f"{row['load']:.1f} s",
            f"{row['peak'] / 1e9:.2f} GB",
            f"{row['anonymous'] / 1e9:.2f} GB",
        )
    console.print(table)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a bundle, a checkpoint, or `demo`")
    parser.add_argument("--clip", type=Path)
    parser.add_argument(
        "--precision", nargs="+", choices=DECODER_PRECISIONS, default=["int8", "int4"]
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    found, rows = find(options.model, options.clip), {}
    if isinstance(found, Bundle):
        if found.decoder is None:
            parser.error(f"{options.model} has no language model in it")
        rows[found.decoder.precision] = in_own_process(
            found.folder, found.decoder, options.threads, options.repeats
        )
    else:
        from export.decoder.write import write_decoder

        for precision in options.precision:
            with tempfile.TemporaryDirectory(dir=".") as folder:
                info = write_decoder(found, Path(folder), precision, {})
                rows[precision] = in_own_process(
                    Path(folder), info, options.threads, options.repeats
                )
    print_table(rows, Console(highlight=False))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        about = json.loads(sys.argv[2])
        print(json.dumps(measure(Path(about[0]), DecoderInfo(**about[1]), *about[2:])))
    else:
        main()
