"""INT8 towers for Paddle Inference. Experimental: Paddle 3.3 runs them but can no longer make them,
so an environment with Paddle 3.1.1 makes them (paddle_int8.txt). This module runs on both sides.

Activations get one scale each from Paddle's post-training quantisation, weights one per output
channel. Paddle's own way from there, `enable_mkldnn_int8`, gives wrong numbers: it takes the scales
of a square weight's columns for those of its rows, and computes new ones over the wrong axis. So
the float weights are put back, and the pass in Python of Paddle 3.1.1, which is right, makes the
final graph."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import paddle_recomp
from paddle_recomp.bundle.contract import Graph

from .errors import ExportError
from .versions import NAMES

if TYPE_CHECKING:
    from .calibration import Samples
    from .convert import Job

PADDLE = "3.1.1"
ALGORITHM = "abs_max"
_FAILED = "quantisation failed: "


@dataclass(frozen=True)
class Int8Job:
    """The job of the process with the other Paddle: plain values, as JSON."""

    graph: Graph
    model_dir: str
    clip_dir: str
    config: dict[str, Any]
    reads: tuple[str, ...]
    feeds: str
    """A file of numpy's with the tower's input, all samples in one array."""
    output: str
    """A folder."""


def quantise_for_paddle(
    folder: Path,
    job: Job,
    outputs: Mapping[Graph, Sequence[str]],
    samples: Samples,
    python: Path,
    target: float,
) -> dict[str, float]:
    """Writes FOLDER/paddle/int8 beside the float files in FOLDER/paddle, and gives the mean cosine
    to them of each guarded output. `job` names the checkpoint, `outputs` has the names of each
    tower's outputs, `python` is the other interpreter.

    Raises: ExportError when the other process fails, or when the target is missed, with the cosine
    that was reached."""
    from paddle_recomp.backends.paddle_inference import Predictor

    from .accuracy import TOWERS, cosines

    output = folder / "paddle" / "int8"
    output.mkdir()
    cosine: dict[str, float] = {}
    for graph in TOWERS:
        feeds = samples.feeds[graph]
        (name,) = feeds[0]
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            np.savez(f"{scratch}/feeds.npz", **{name: np.concatenate([f[name] for f in feeds])})
            quantise_tower(
                Int8Job(
                    graph=graph,
                    model_dir=job.model_dir,
                    clip_dir=job.clip_dir,
                    config=job.config,
                    reads=job.reads,
                    feeds=f"{scratch}/feeds.npz",
                    output=str(output),
                ),
                python,
            )
        # Names of parameters, which nothing reads.
        (output / f"{graph}.pdiparams.info").unlink(missing_ok=True)
        found = []
        for stem, end in ((folder / "paddle" / graph, ".json"), (output / graph, ".pdmodel")):
            predictor = Predictor(Path(f"{stem}{end}"), Path(f"{stem}.pdiparams"))
            found.append([predictor.run(feed, outputs[graph]) for feed in feeds])
            del predictor
        cosine |= cosines(*found)
    check_target(cosine, target)
    return cosine


def quantise_tower(job: Int8Job, python: Path) -> None:
    """Writes GRAPH.pdmodel and GRAPH.pdiparams into the folder of a job.

    Raises: ExportError when its process fails."""
    with _lent_packages() as lent:
        done = subprocess.run(
            [str(python), "-m", f"{__package__}.paddle_int8", json.dumps(asdict(job))],
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "GLOG_minloglevel": "2",
                "FLAGS_enable_pir_api": "0",
                "PYTHONPATH": lent,
            },
        )
    files = [Path(job.output) / f"{job.graph}{end}" for end in (".pdmodel", ".pdiparams")]
    if done.returncode == 0 and all(path.is_file() and path.stat().st_size for path in files):
        return
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [
        f"its process ended with code {done.returncode}"
    ]
    reason = next((line for line in lines if line.startswith(_FAILED)), lines[-1])
    raise ExportError(
        f"the graph {job.graph!r} could not become INT8 for Paddle Inference: "
        f"{reason.removeprefix(_FAILED)}"
    )


@contextmanager
def _lent_packages() -> Iterator[str]:
    """A folder from which another interpreter imports this package and the library. It does not see
    the other packages that are installed beside them, above all another Paddle."""
    assert __package__
    with tempfile.TemporaryDirectory() as folder:
        for name, place in (
            (__package__, Path(__file__).parent),
            (paddle_recomp.__name__, Path(paddle_recomp.__file__).parent),
        ):
            Path(folder, name).symlink_to(place.resolve(), target_is_directory=True)
        yield folder


def check_interpreter(python: Path) -> None:
    """Raises: ExportError when it cannot be run or has another Paddle."""
    code = (
        "from importlib.metadata import distributions\n"
        f"found = {{one.metadata['Name'].lower(): one.version for one in distributions()}}\n"
        f"print(*[found[name] for name in {NAMES['paddle']!r} if name in found][:1])"
    )
    try:
        done = subprocess.run(
            [str(python), "-c", code], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ExportError(f"{python} cannot be run: {error.strerror or error}") from error
    found = done.stdout.strip() or "none"
    if found != PADDLE:
        environment = Path(__file__).with_suffix(".txt")
        raise ExportError(
            f"paddle of {python} is {found}; expected {PADDLE}: install it with -r {environment}"
        )


def check_target(cosine: Mapping[str, float], target: float) -> None:
    """Raises: ExportError when an output falls short of the target."""
    missed = {name: value for name, value in cosine.items() if not value >= target}
    if missed:
        reached = ", ".join(f"{name} {value:.6f}" for name, value in missed.items())
        raise ExportError(
            f"INT8 for Paddle Inference keeps a cosine of {reached}; expected {target:g}: "
            "leave out --paddle-int8"
        )


def main(text: str) -> None:
    """Runs a job, in the environment with the other Paddle."""
    import paddle

    job = Int8Job(**json.loads(text))
    folder, stem = Path(job.output), f"{job.output}/{job.graph}"
    _save_float(job, stem)
    paddle.enable_static()
    executor = paddle.static.Executor(paddle.CPUPlace())
    files = {
        "model_filename": f"{job.graph}.pdmodel",
        "params_filename": f"{job.graph}.pdiparams",
    }
    program, names, outputs = paddle.static.load_inference_model(str(folder), executor, **files)
    weights = _weights(program)
    calibrated = _calibrated(program, names, outputs, weights, executor, np.load(job.feeds))
    calibrated.save_quantized_model(str(folder), **files)
    # In a scope of its own, because the first one holds activations, which the pass takes for
    # weights.
    scope = paddle.static.Scope()
    with paddle.static.scope_guard(scope):
        program, names, outputs = paddle.static.load_inference_model(str(folder), executor, **files)
        for name, value in weights.items():
            scope.find_var(name).get_tensor().set(value, paddle.CPUPlace())
        program = _final(program, scope)
        block = program.global_block()
        paddle.static.save_inference_model(
            stem,
            [block.var(name) for name in names],
            [block.var(output.name) for output in outputs],
            executor=executor,
            program=program,
            # Clipping would lose the scales.
            clip_extra=False,
        )
    _forget_paths(f"{stem}.pdmodel")


def _save_float(job: Int8Job, stem: str) -> None:
    import paddle

    from paddle_recomp.checkpoint import open_checkpoint
    from paddle_recomp.compression.config import CompressionConfig

    from .graphs import build, input_specs

    checkpoint = open_checkpoint(Path(job.model_dir), Path(job.clip_dir))
    layer = build(job.graph, checkpoint, CompressionConfig(**job.config), job.reads)
    specs = [input_specs(layer.signature, checkpoint.spec)]
    traced = paddle.jit.to_static(layer, input_spec=specs, full_graph=True)
    paddle.jit.save(traced, stem)


def _weights(program: Any) -> dict[str, np.ndarray]:
    import paddle

    scope = paddle.static.global_scope()
    # A loaded program has no parameters any more, only persistable variables.
    names = [
        v.name for v in program.list_vars() if v.persistable and v.name not in ("feed", "fetch")
    ]
    return {name: np.array(scope.find_var(name).get_tensor()) for name in names}


def _calibrated(
    program: Any,
    names: Sequence[str],
    outputs: Sequence[Any],
    weights: Mapping[str, np.ndarray],
    executor: Any,
    feeds: Mapping[str, np.ndarray],
) -> Any:
    """Scales for the inputs of the linear layers. Left out are attention's own products, and layers
    whose result is an output of the graph, which Paddle computes wrongly."""
    from paddle.static.quantization import PostTrainingQuantizationProgram

    last = {output.name for output in outputs}
    skipped = [
        op.input("X")[0]
        for op in program.global_block().ops
        if op.type == "matmul_v2"
        and (op.input("Y")[0] not in weights or op.output("Out")[0] in last)
    ]
    (name,) = names
    samples = feeds[name]
    calibrated = PostTrainingQuantizationProgram(
        executor,
        program,
        feed_list=list(names),
        fetch_list=list(outputs),
        data_loader=lambda: ({name: samples[i : i + 1]} for i in range(len(samples))),
        batch_size=1,
        batch_nums=len(samples),
        algo=ALGORITHM,
        quantizable_op_type=["matmul_v2"],
        weight_quantize_type="abs_max",
        activation_quantize_type="moving_average_abs_max",
        skip_tensor_list=skipped,
        onnx_format=False,
        return_graph=False,
    )
    calibrated.quantize()
    return calibrated


def _final(program: Any, scope: Any) -> Any:
    """The graph of oneDNN's operations, with its linear layers in INT8."""
    import paddle
    from paddle.base import core
    from paddle.base.framework import IrGraph
    from paddle.static.quantization import Quant2Int8MkldnnPass

    made = Quant2Int8MkldnnPass(
        {"fc"},
        _scope=scope,
        _place=paddle.CPUPlace(),
        _core=core,
    )
    return made.apply(IrGraph(core.Graph(program.desc), for_test=True)).to_program()


def _forget_paths(path: str) -> None:
    """Removes from a saved program the file and line in which each operation was created."""
    import paddle

    program = paddle.static.deserialize_program(paddle.static.load_from_file(path))
    for op in program.global_block().ops:
        if op.has_attr("op_callstack"):
            op._remove_attr("op_callstack")
    paddle.static.save_to_file(path, program.desc.serialize_to_string())


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:  # The parent reports every exception.
        print(f"{_FAILED}{' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
