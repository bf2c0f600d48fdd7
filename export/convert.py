"""One graph from Paddle to ONNX, in a process of its own: paddle2onnx aborts the process on an
operation that it does not know, and the memory of a tower goes back when its process ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.shapes import shapes_of
from paddle_recomp.backends.base import OUTPUTS, Graph
from paddle_recomp.checkpoint import ModelSpec

OPSET = 17
_FAILED = "conversion failed: "
"""How the process marks the line of its error among the warnings of libraries."""


@dataclass(frozen=True)
class Job:
    """What the process is told: plain values, as JSON."""

    graph: Graph
    model_dir: str
    clip_dir: str
    config: dict[str, Any]
    operators: str
    metadata: dict[str, str]
    output: str


def convert(job: Job) -> None:
    """Writes the graph of a job, optimised, checked, and compared with its layer.

    Raises: ExportError naming the graph when its process dies or finds a difference."""
    # `-m export.convert` needs the folder in which this package lies, wherever it is called from.
    root = str(Path(__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        command(job),
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "GLOG_minloglevel": "2",
            "PYTHONPATH": os.pathsep.join(paths),
        },
    )
    output = Path(job.output)
    if done.returncode == 0 and output.is_file() and output.stat().st_size:
        return
    output.unlink(missing_ok=True)
    raise ExportError(f"the graph {job.graph!r} could not be converted: {_reason(done)}")


def command(job: Job) -> list[str]:
    """The process of a job."""
    return [sys.executable, "-m", "export.convert", json.dumps(asdict(job))]


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        why = {"SIGKILL": " (out of memory?)", "SIGABRT": " (an operation that has no ONNX form?)"}
        return f"its process died of {name}{why.get(name, '')}"
    for line in done.stderr.splitlines():
        if line.startswith(_FAILED):
            return line.removeprefix(_FAILED)
    # paddle2onnx also ends its process without a word, when it cannot read what Paddle wrote.
    return f"its process ended with code {done.returncode} and wrote nothing"


def convert_layer(
    graph: Graph,
    layer: Any,
    spec: ModelSpec,
    folder: Path,
    metadata: Mapping[str, str] | None = None,
    operators: str = "onnxruntime",
) -> Any:
    """The ONNX model of a layer, optimised and checked; `folder` is for intermediate files. The
    layer is traced, after which it no longer runs eagerly. Not where paddlenlp was imported, which
    replaces functions of Paddle: the tracer then waits for itself.

    Raises: ExportError; whatever the exporter and the checks raise. May abort the process."""
    import onnx
    import paddle
    import paddle2onnx

    from export.graphs import input_specs
    from export.onnx_graph import OnnxGraph
    from export.optimise import check, finish, optimise, set_shapes

    weights = {parameter.name: name for name, parameter in layer.named_parameters()}
    traced = paddle.jit.to_static(layer, input_spec=input_specs(graph, spec), full_graph=True)
    paddle.jit.save(traced, f"{folder}/traced")
    raw = paddle2onnx.export(
        f"{folder}/traced.json",
        f"{folder}/traced.pdiparams",
        opset_version=OPSET,
        # Its own folding renames values at random, and ours does more.
        optimize_tool="None",
        enable_onnx_checker=False,
    )
    if not raw:
        raise ExportError("paddle2onnx wrote nothing, as it does for more than 2 GB")
    loaded = onnx.load_from_string(raw)
    del raw
    rewritten = OnnxGraph.read(loaded, OUTPUTS[graph])
    # Each of them holds all weights of a tower once more.
    del loaded
    optimise(rewritten, operators)
    finish(rewritten, graph, weights)
    set_shapes(rewritten, shapes_of(spec))
    model = rewritten.model(metadata)
    check(model)
    return model


def main(text: str) -> None:
    """Runs a job. Only ever called in a process of its own."""
    from export.graphs import build
    from export.parity import compare_with_layer
    from export.writing import write_model
    from paddle_recomp.checkpoint import open_checkpoint
    from paddle_recomp.config import CompressionConfig

    job = Job(**json.loads(text))
    checkpoint = open_checkpoint(Path(job.model_dir), Path(job.clip_dir))
    config, spec, output = CompressionConfig(**job.config), checkpoint.spec, Path(job.output)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        layer = build(job.graph, checkpoint, config)
        model = convert_layer(job.graph, layer, spec, Path(folder), job.metadata, job.operators)
    del layer
    write_model(model, output)
    del model
    compare_with_layer(job.graph, build(job.graph, checkpoint, config), spec, output)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:  # Whatever it is, the parent reports it.
        name = "" if isinstance(error, ExportError) else f"{type(error).__name__}: "
        print(f"{_FAILED}{name}{' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
