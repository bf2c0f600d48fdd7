"""The command `python -m export`: a bundle from a checkpoint, and the proof that nothing was
lost on the way."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from paddle_recomp.commands.console import quiet_paddle, run_app, warnings_as_lines
from paddle_recomp.commands.options import (
    ClipOption,
    MethodOption,
    PresetOption,
    SwitchOption,
    config_from_options,
)
from paddle_recomp.errors import ConfigError, MissingDependencyError

app = typer.Typer(add_completion=False, rich_markup_mode=None)

ModelOption = Annotated[
    str, typer.Option("--model", help="A checkpoint folder, or `demo`: the embedded one.")
]


@app.callback(invoke_without_command=True)
def export_bundle(
    context: typer.Context,
    model: ModelOption = "demo",
    output: Annotated[Path | None, typer.Option("--out", help="The bundle's folder.")] = None,
    clip: ClipOption = None,
    preset_name: PresetOption = None,
    method: MethodOption = None,
    switches: SwitchOption = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32 or int8.")] = "fp32",
    operators: Annotated[
        str,
        typer.Option(
            "--operators", help="onnxruntime: with its fused attention; onnx: plain, for OpenVINO."
        ),
    ] = "onnxruntime",
    decoder: Annotated[
        str | None,
        typer.Option(
            "--decoder", help="fp32, int8 or int4, or none; default: as the bundle's precision."
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--quantization", help="Of int8: dynamic (default) or static.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", help="Of static: minmax (default), entropy, percentile."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option("--calibrate", help="A folder of pictures for int8.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option("--questions", help="A file of questions for int8, one a line.")
    ] = None,
    target: Annotated[
        float | None, typer.Option("--target-cosine", help="What int8 must keep; default 0.999.")
    ] = None,
    scales: Annotated[
        Path | None,
        typer.Option("--scales", help="scales.json of an earlier int8 export, to take its ranges."),
    ] = None,
    paddle: Annotated[
        bool, typer.Option("--paddle", help="Also write the graphs for Paddle Inference.")
    ] = False,
    paddle_int8: Annotated[
        Path | None,
        typer.Option(
            "--paddle-int8",
            metavar="PYTHON",
            help="Experimental: its INT8, by the interpreter of an environment with Paddle 3.1.1.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Measure what each layer costs in int8; JSON goes here."),
    ] = None,
) -> None:
    """Write the bundle of a checkpoint: graphs for ONNX Runtime, with all that runs them."""
    if context.invoked_subcommand is not None:
        return
    if output is None:
        raise ConfigError("name the folder to write (--out DIR)")
    config = config_from_options(preset_name, method, switches)
    with _tools_required(), quiet_paddle(), warnings_as_lines():
        from export.accuracy import Outcome, print_ranking, write_ranking
        from export.build import STEPS, export
        from export.calibration import Quantisation
        from export.scales import read_scales

        given: dict[str, Any] = {
            "kind": kind,
            "method": calibration,
            "pictures": pictures,
            "questions": questions,
            "target_cosine": target,
        }
        chosen = {key: value for key, value in given.items() if value is not None}
        if scales is not None:
            found = read_scales(scales)
            chosen = {"kind": found.kind, "method": found.method, "scales": found, **chosen}
        quantisation = Quantisation(**chosen) if chosen or precision == "int8" else None
        if report is not None and precision != "int8":
            raise ConfigError("--report needs --precision int8")
        outcomes: list[Outcome] = []
        heard = None if report is None else outcomes.append
        steps = len(STEPS.get(precision, ())) + paddle + (paddle_int8 is not None)
        with _progress(steps) as on_step:
            bundle = export(
                model,
                output,
                clip=clip,
                config=config,
                precision=precision,
                operators=operators,
                quantisation=quantisation,
                decoder=decoder,
                paddle=paddle,
                paddle_int8=paddle_int8,
                on_step=on_step,
                on_outcome=heard,
            )
        for outcome in outcomes:
            print_ranking(Console(highlight=False), outcome)
        if report is not None:
            write_ranking(report, outcomes[0])
    size = sum(info.num_bytes for info in bundle.files.values())
    typer.echo(f"{output}: {len(bundle.files)} files, {size / 1e6:.1f} MB, {bundle.precision}")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    model: ModelOption = "demo",
    clip: ClipOption = None,
    pictures: Annotated[
        Path | None, typer.Option("--images", help="A folder of pictures to compare on.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--json", help="Write the comparison into this file.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print what is broken alone.")] = False,
) -> None:
    """Compare BUNDLE with its checkpoint, stage by stage and token by token."""
    with _tools_required(), quiet_paddle(), warnings_as_lines():
        from export.verify import print_table, verify_bundle, write_report

        rows = verify_bundle(bundle, model, clip, pictures)
        broken = [row for row in rows if not row.passed]
        if shown := broken if quiet else rows:
            print_table(Console(highlight=False), shown)
        if report is not None:
            write_report(report, rows)
    typer.echo(f"{bundle}: {len(rows) - len(broken)} of {len(rows)} comparisons passed")
    if broken:
        typer.echo(f"{len(broken)} of {len(rows)} comparisons exceed their tolerance", err=True)
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; an expected error is one line and exit code 2, a broken tolerance 1."""
    return run_app(app, "export", arguments)


@contextmanager
def _progress(steps: int) -> Iterator[Any]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("reading", total=steps)
        heard = 0

        def on_step(step: str) -> None:
            nonlocal heard
            bar.update(task, description=step, completed=heard)
            heard += 1

        yield on_step


@contextmanager
def _tools_required() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("paddle", "paddle2onnx", "onnx", "onnxruntime"):
            raise
        raise MissingDependencyError(
            f"an export needs {error.name}, which is not installed: "
            "pip install 'paddle-recomp[export]'"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
