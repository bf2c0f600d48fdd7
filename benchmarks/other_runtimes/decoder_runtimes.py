r"""The decoder in ONNX Runtime, as `recomp` runs it, against other runtimes with the same weights.

    python -m benchmarks.other_runtimes.decoder_runtimes build/checkpoints/tiny-llava-1.1b \
        --folder build/runtimes

The others are no part of the project; those that are not installed say so in their lines. An
environment that has them:

    python -m venv build/env
    build/env/bin/pip install -c constraints.txt -e ".[export]"
    build/env/bin/pip install onnxruntime-genai==0.18.0 openvino==2026.4.1 nncf==3.4.0

Each line is a process of its own. A time counts only if the logits behind the longest prompt and
behind each token after it are about as near to fp32 as those of ONNX Runtime in the same precision.
Models in `--folder` from an earlier run are used again; without it the models are temporary."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

import numpy as np

from benchmarks.decoder import PROMPTS, STEPS
from benchmarks.other_runtimes.genai_decoder import GenaiDecoder, stand_in, write_genai
from benchmarks.other_runtimes.openvino_decoder import (
    FILE,
    OnnxInOpenVino,
    OpenVinoDecoder,
    write_openvino,
)
from export.decoder.write import EMBEDDING, GRAPH, write_decoder
from paddle_recomp.bundle import DecoderInfo
from paddle_recomp.bundle.comparison import mean_cosine
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.llm.onnx_decoder import OnnxDecoder
from paddle_recomp.vlm.loading import find_checkpoint
from paddle_recomp.vlm.machine import anonymous_memory, peak_memory

OURS, GENAI, OPENVINO, OPENVINO_ONNX = (
    "ONNX Runtime",
    "onnxruntime-genai",
    "OpenVINO",
    "OpenVINO, the bundle's graph",
)
PACKAGES = {
    OURS: ("onnxruntime",),
    GENAI: ("onnxruntime_genai",),
    OPENVINO: ("openvino", "nncf"),
    OPENVINO_ONNX: ("openvino",),
}
"""The packages that each runtime, and the writer of its graph, import."""
PRECISIONS = ("fp32", "int8", "int4")
INFO = "decoder.json"


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    runtime: str
    precision: str
    label: str = ""
    hints: dict[str, str] = field(default_factory=dict)
    """OpenVINO's configuration."""

    @property
    def name(self) -> str:
        """The name in the table."""
        return f"{self.runtime}, {self.label}" if self.label else self.runtime


_FLOAT = {"INFERENCE_PRECISION_HINT": "f32"}
_BF16 = {"INFERENCE_PRECISION_HINT": "bf16"}
_GROUPS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}
ROWS = [
    Row(OURS, "fp32"),
    Row(OPENVINO, "fp32", "float cache", {**_FLOAT, "KV_CACHE_PRECISION": "f32"}),
    Row(OPENVINO, "fp32", "bf16", _BF16),
] + [
    Row(runtime, precision, label, hints)
    for precision in ("int8", "int4")
    for runtime, label, hints in (
        (OURS, "", {}),
        (GENAI, "", {}),
        (OPENVINO_ONNX, "", _FLOAT),
        # By default activations become integers in groups of 32, and the cache has eight bits.
        (OPENVINO, "", _FLOAT),
        (OPENVINO, "bf16", _BF16),
        (OPENVINO, "groups of 128", {**_FLOAT, **_GROUPS}),
        (OPENVINO, "bf16, groups of 128", {**_BF16, **_GROUPS}),
        (OPENVINO, "float activations", {**_FLOAT, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}),
    )
]


class Decoder(Protocol):
    """One prompt at a time."""

    def prefill(self, embeds: np.ndarray) -> np.ndarray:
        """Embeddings [T, D] -> logits behind the last [V]."""
        ...

    def decode(self, token: int) -> np.ndarray:
        """One token more -> logits [V]."""
        ...


class _Ours:
    """`OnnxDecoder`, with a cache of exactly the needed size."""

    def __init__(self, folder: Path, info: DecoderInfo, threads: int, capacity: int) -> None:
        self.model, self.capacity = OnnxDecoder(folder, info, threads=threads), capacity
        self.state: Any = None

    def prefill(self, embeds: np.ndarray) -> np.ndarray:
        logits, self.state = self.model.prefill(
            embeds[None], np.array([len(embeds)]), self.capacity
        )
        return logits[0]

    def decode(self, token: int) -> np.ndarray:
        logits, self.state = self.model.decode(np.array([token]), self.state)
        return logits[0]


def write_models(checkpoint: Checkpoint, folder: Path, precision: str, threads: int) -> None:
    """Writes the models for the rows of a precision, unless they exist."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / INFO).is_file():
        info = write_decoder(checkpoint, folder, precision, {})
        (folder / INFO).write_text(json.dumps(asdict(info)))
    write_genai(folder, _info(folder), threads)
    if not missing(OPENVINO) and not (folder / FILE).is_file():
        write_openvino(checkpoint, folder, precision)


def missing(runtime: str) -> list[str]:
    """The packages of a runtime that are not installed."""
    return [name for name in PACKAGES[runtime] if importlib.util.find_spec(name) is None]


def open_decoder(row: Row, folder: Path, threads: int, capacity: int) -> Decoder:
    """The decoder of a row, ready to run."""
    info = _info(folder)
    table = np.load(folder / EMBEDDING, mmap_mode="r", allow_pickle=False)
    hints = {"INFERENCE_NUM_THREADS": str(threads), **row.hints}
    if row.runtime == OURS:
        return _Ours(folder, info, threads, capacity)
    if row.runtime == GENAI:
        return GenaiDecoder(folder, info, capacity)
    if row.runtime == OPENVINO:
        return OpenVinoDecoder(folder / FILE, table, hints)
    return OnnxInOpenVino(folder / GRAPH, table, hints, info)


def measure(row: Row, folder: Path, threads: int, repeats: int, logits: Path) -> dict[str, Any]:
    """Median seconds, and bytes. Writes the logits [1 + STEPS, V] for the comparison."""
    for package in PACKAGES[row.runtime][:1]:
        importlib.import_module(package)
    longest = max(PROMPTS)
    rng = np.random.default_rng(0)
    info = _info(folder)
    embeds = rng.normal(0, 0.02, (longest, info.hidden_size)).astype(np.float32)
    tokens = rng.integers(0, stand_in(info), STEPS).tolist()
    start = time.perf_counter()
    # genai ends a prompt where its cache is full.
    model = open_decoder(row, folder, threads, longest + STEPS + 1)
    found: dict[str, Any] = {"load": time.perf_counter() - start}
    first = model.prefill(embeds)
    np.save(logits, np.stack([first, *(model.decode(token) for token in tokens)]))
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for length in sorted(PROMPTS):
            begin = time.perf_counter()
            model.prefill(embeds[:length])
            times[f"prefill {length}"].append(time.perf_counter() - begin)
        for token in tokens:
            begin = time.perf_counter()
            model.decode(token)
            times["decode"].append(time.perf_counter() - begin)
    found |= {name: median(values) for name, values in times.items()}
    return found | {"peak": peak_memory(), "anonymous": anonymous_memory()}


def in_own_process(row: Row, folder: Path, threads: int, repeats: int) -> Found | str:
    """`measure` in a process of its own; or a text that says why there is no result."""
    if absent := missing(row.runtime):
        return f"not installed: {', '.join(absent)}"
    logits = folder / "logits.npy"
    about = json.dumps([asdict(row), str(folder), threads, repeats, str(logits)])
    command = [
        sys.executable,
        "-m",
        "benchmarks.other_runtimes.decoder_runtimes",
        "--measure",
        about,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    return Found(json.loads(done.stdout.splitlines()[-1]), np.load(logits))


_PREFILLS = tuple(f"prefill {length}" for length in PROMPTS)
COLUMNS = (
    "weights",
    "runtime",
    *_PREFILLS,
    "decode",
    "load",
    "peak memory",
    "of it anonymous",
    "cosine to fp32",
    "to ONNX Runtime",
    "same next token",
)
FARTHER = 0.01
"""By how much a cosine to fp32 may be below that of ONNX Runtime in the same precision."""


class Found(NamedTuple):
    """The measurements of a process."""

    times: dict[str, float]
    """Median seconds, and bytes."""
    logits: np.ndarray
    """[1 + STEPS, V]."""


def table_line(row: Row, found: Found | str, ours: Found, exact: np.ndarray) -> str:
    """A line, with the speed relative to `ours` in brackets; `exact` are the logits of fp32. If the
    found logits are too far from them, the line has no times."""
    if isinstance(found, str):
        return _joined([row.precision, row.name, found, *[""] * (len(COLUMNS) - 3)])
    cosine = mean_cosine(exact, found.logits)
    same = int((ours.logits.argmax(axis=1) == found.logits.argmax(axis=1)).sum())
    agreement = [
        f"{cosine:.4f}",
        f"{mean_cosine(ours.logits, found.logits):.4f}",
        f"{same} of {len(exact)}",
    ]
    if not cosine >= mean_cosine(exact, ours.logits) - FARTHER:
        gone = [""] * (len(COLUMNS) - 3 - len(agreement))
        return _joined([row.precision, row.name, "other logits", *gone, *agreement])
    times = found.times
    faster = {name: ours.times[name] / value for name, value in times.items()}
    cells = [
        *(f"{times[name]:.3f} s ({faster[name]:.2f})" for name in _PREFILLS),
        f"{1 / times['decode']:.1f}/s ({faster['decode']:.2f})",
        f"{times['load']:.1f} s",
        f"{times['peak'] / 1e9:.2f} GB",
        f"{times['anonymous'] / 1e9:.2f} GB",
    ]
    return _joined([row.precision, row.name, *cells, *agreement])


def _joined(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _info(folder: Path) -> DecoderInfo:
    return DecoderInfo(**json.loads((folder / INFO).read_text()))


def _versions() -> str:
    found = []
    for package in ("onnxruntime", "onnxruntime-genai", "openvino", "nncf"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


def compare(checkpoint: Checkpoint, folder: Path, threads: int, repeats: int) -> None:
    """Prints the table, line by line."""
    for precision in PRECISIONS:
        write_models(checkpoint, folder / precision, precision, threads)
    print(f"{threads} threads, {_versions()}; medians of {repeats}, decoding of {STEPS} each\n")
    print(_joined(COLUMNS), "|---" * len(COLUMNS) + "|", sep="\n")
    ours: dict[str, Found] = {}
    for row in ROWS:
        found = in_own_process(row, folder / row.precision, threads, repeats)
        if row.runtime == OURS:
            if isinstance(found, str):
                raise SystemExit(f"{row.name} {row.precision}: {found}")
            ours[row.precision] = found
        line = table_line(row, found, ours[row.precision], ours[ROWS[0].precision].logits)
        print(line, flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--folder", type=Path, help="where the models stay; default: nowhere")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    checkpoint = find_checkpoint(options.checkpoint, options.clip)
    if options.folder is not None:
        compare(checkpoint, options.folder, options.threads, options.repeats)
        return
    with tempfile.TemporaryDirectory(dir=".") as folder:
        compare(checkpoint, Path(folder), options.threads, options.repeats)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        about = json.loads(sys.argv[2])
        found = measure(Row(**about[0]), Path(about[1]), about[2], about[3], Path(about[4]))
        print(json.dumps(found))
    else:
        main()
