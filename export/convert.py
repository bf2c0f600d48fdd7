"""One graph from Paddle to ONNX and to the files of Paddle Inference, in a process of its own:
paddle2onnx aborts the process on an operation that it does not know, and the memory of a tower goes
back when its process ends."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paddle_recomp.bundle.contract import Graph
from paddle_recomp.checkpoint import ModelSpec
from paddle_recomp.files import is_file

from .errors import ExportError
from .float32 import keep_float32
from .shapes import shapes_of

OPSET = 17
PADDLE_FILES = (".json", ".pdiparams")
"""The endings of a program and of its weights."""
_TRACED = "traced"
_FAILED = "conversion failed: "
"""The process puts this in front of its error, which stands among the warnings of libraries."""


@dataclass(frozen=True)
class Job:
    """The job of the process: plain values, as JSON."""

    graph: Graph
    model_dir: str
    clip_dir: str
    config: dict[str, Any]
    reads: tuple[str, ...]
    """All inputs of the compress graphs of the bundle."""
    operators: str
    metadata: dict[str, str]
    output: str | None
    """The ONNX file to write; None for none."""
    paddle: str | None = None
    """The files of Paddle Inference, without .json and .pdiparams; None: not kept."""

    @property
    def files(self) -> list[Path]:
        """The files that the process writes."""
        paddle = [] if self.paddle is None else [self.paddle + end for end in PADDLE_FILES]
        return [Path(name) for name in ([] if self.output is None else [self.output]) + paddle]


def convert(job: Job) -> None:
    """Writes the files of a job, checked and compared with the layer.

    Raises: ExportError naming the graph when its process dies or finds a difference."""
    done = subprocess.run(
        command(job),
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "GLOG_minloglevel": "2",
            # The process gets this one's import path, so that it works in a checkout and in an
            # installation.
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        },
    )
    if done.returncode == 0 and all(is_file(p) and p.stat().st_size for p in job.files):
        return
    for path in job.files:
        path.unlink(missing_ok=True)
    raise ExportError(f"the graph {job.graph!r} could not be converted: {_reason(done)}")


def command(job: Job) -> list[str]:
    """The process of a job."""
    return [sys.executable, "-m", f"{__package__}.convert", json.dumps(asdict(job))]


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        why = {"SIGKILL": " (out of memory?)", "SIGABRT": " (an operation that has no ONNX form?)"}
        return f"its process died of {name}{why.get(name, '')}"
    for line in done.stderr.splitlines():
        if line.startswith(_FAILED):
            return line.removeprefix(_FAILED)
    # paddle2onnx also ends its process without a word when it cannot read Paddle's file.
    return f"its process ended with code {done.returncode} and wrote nothing"


def save_layer(layer: Any, spec: ModelSpec, stem: Path) -> None:
    """Writes a layer as Paddle Inference reads it. The layer is traced, after which it no longer
    runs eagerly. Must not be called in a process that has imported paddlenlp: that replaces
    functions of Paddle, and the tracer then waits for itself.

    Raises: ExportError when weights are missing; any exception of the tracer."""
    import paddle

    from .graphs import input_specs

    specs = [input_specs(layer.signature, spec)]
    traced = paddle.jit.to_static(layer, input_spec=specs, full_graph=True)
    paddle.jit.save(traced, str(stem))
    # On a full disk Paddle drops weights without a word.
    wanted, weights = bytes_of_parameters(stem), Path(f"{stem}.pdiparams")
    # Of a layer without weights it writes no such file.
    found = weights.stat().st_size if is_file(weights) else 0
    if found < wanted:
        raise ExportError(f"Paddle wrote {found} bytes of {wanted} bytes of weights: a full disk?")


def bytes_of_parameters(stem: Path) -> int:
    """The bytes of all parameters that a saved program reads: fewer than the layer has, where
    nothing reads some of them. STEM.json holds an operation `p` for each, with type and shape."""
    program = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))["program"]
    operations = program["regions"][0]["blocks"][0]["ops"]
    kinds = [one["O"]["TT"]["D"] for one in operations if one["#"] == "p"]
    return sum(int(kind["#"][-2:]) // 8 * math.prod(shape) for kind, shape, *_ in kinds)


def convert_layer(
    graph: Graph,
    layer: Any,
    spec: ModelSpec,
    folder: Path,
    metadata: Mapping[str, str] | None = None,
    operators: str = "onnxruntime",
) -> Any:
    """The ONNX model of a layer, optimised and checked. `folder` keeps `traced.json` and
    `traced.pdiparams`; see `save_layer`.

    Raises: ExportError; any exception of the exporter and of the checks. May abort the process."""
    import onnx
    import paddle2onnx

    from .onnx_graph import OnnxGraph
    from .optimise import check, finish, optimise, set_shapes

    weights = {parameter.name: name for name, parameter in layer.named_parameters()}
    save_layer(layer, spec, folder / _TRACED)
    raw = paddle2onnx.export(
        f"{folder}/{_TRACED}.json",
        f"{folder}/{_TRACED}.pdiparams",
        opset_version=OPSET,
        # Its own folding runs pip for packages that it lacks, and renames values at random; ours
        # does more.
        optimize_tool="None",
        enable_onnx_checker=False,
    )
    if not raw:
        raise ExportError("paddle2onnx wrote nothing, as it does for more than 2 GB")
    loaded = onnx.load_from_string(raw)
    del raw
    rewritten = OnnxGraph.read(loaded, layer.signature.outputs)
    # Paddle sorts them by name.
    rewritten.inputs.sort(key=lambda item: layer.signature.inputs.index(item.name))
    # Each of them holds a copy of all weights of a tower.
    del loaded
    optimise(rewritten, operators)
    finish(rewritten, graph, weights)
    set_shapes(rewritten, shapes_of(spec))
    model = rewritten.model(metadata)
    check(model)
    return model


def main(text: str) -> None:
    """Runs a job. Must be called in a process of its own."""
    from paddle_recomp.checkpoint import open_checkpoint
    from paddle_recomp.compression.config import CompressionConfig

    from .graphs import build
    from .parity import compare_with_layer, run, run_paddle
    from .writing import write_model

    job = Job(**json.loads(text))
    checkpoint = open_checkpoint(Path(job.model_dir), Path(job.clip_dir))
    config, spec = CompressionConfig(**job.config), checkpoint.spec
    with tempfile.TemporaryDirectory(dir=job.files[0].parent) as name:
        folder, layer = Path(name), build(job.graph, checkpoint, config, job.reads)
        if job.output is None:
            save_layer(layer, spec, folder / _TRACED)
        else:
            model = convert_layer(job.graph, layer, spec, folder, job.metadata, job.operators)
            write_model(model, Path(job.output))
            del model
        if job.paddle is not None:
            program, params = PADDLE_FILES
            text = keep_float32((folder / f"{_TRACED}{program}").read_text(encoding="utf-8"))
            Path(f"{job.paddle}{program}").write_text(text, encoding="utf-8", newline="\n")
            (folder / f"{_TRACED}{params}").rename(f"{job.paddle}{params}")
    del layer
    layer = build(job.graph, checkpoint, config, job.reads)
    if job.output is not None:
        compare_with_layer(job.graph, layer, spec, job.output, run)
    if job.paddle is not None:
        compare_with_layer(job.graph, layer, spec, job.paddle, run_paddle)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:  # The parent reports every exception.
        name = "" if isinstance(error, ExportError) else f"{type(error).__name__}: "
        print(f"{_FAILED}{name}{' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
