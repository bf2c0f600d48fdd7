"""The command `verify`: whether a bundle computes what it should."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from paddle_recomp.bundle import open_bundle
from paddle_recomp.bundle.comparison import Comparison
from paddle_recomp.bundle.golden import read_golden
from paddle_recomp.commands.console import quiet_paddle, warnings_as_lines
from paddle_recomp.commands.export_tools import export_required
from paddle_recomp.commands.options import (
    ClipOption,
    RuntimeOptions,
    TemplateOption,
    check_folder_of,
    with_options,
)
from paddle_recomp.commands.printing import PlainConsole
from paddle_recomp.errors import ConfigError
from paddle_recomp.json_files import one_line
from paddle_recomp.vlm.demo import DEMO, demo_bundle_folder

Compare = Callable[[Path, str, Path | None, Path | None, str | None], list[Comparison]]
"""A bundle, its checkpoint, the CLIP of that, a folder of pictures and a chat template -> all
comparisons."""

FORMATS = {"difference": ".2e", "length": ".2e", "cosine": ".6f"}


def add_verify(app: typer.Typer, load: Callable[[], Compare]) -> None:
    """Adds the command to `app`. `load` imports what compares a bundle with its checkpoint, and is
    called only where a checkpoint is named."""

    @with_options
    def verify(
        folder: Annotated[
            Path, typer.Argument(metavar="BUNDLE", help="A folder, or `demo`: the embedded bundle.")
        ],
        *,
        model: Annotated[
            str | None,
            typer.Option(
                "--model",
                help="The checkpoint folder to compare with, or `demo`, in place of the golden "
                "cases; needs the extras paddle and export.",
            ),
        ] = None,
        clip: ClipOption = None,
        chat_template: TemplateOption = None,
        pictures: Annotated[
            Path | None, typer.Option("--images", help="A folder of pictures to compare on.")
        ] = None,
        runtime: RuntimeOptions,
        exact: Annotated[
            bool,
            typer.Option(
                "--exact",
                help="Hold INT8 to the limits of fp32: for a machine with the processor and the "
                "runtime that the cases were recorded on.",
            ),
        ] = False,
        report: Annotated[
            Path | None, typer.Option("--json", help="Write the comparison into this file.")
        ] = None,
        quiet: Annotated[
            bool, typer.Option("--quiet", help="Print only failed comparisons.")
        ] = False,
    ) -> None:
        """Replay the golden cases of BUNDLE here, or compare BUNDLE with its checkpoint."""
        check_folder_of(report)
        if str(folder) == DEMO:
            folder = demo_bundle_folder()
        with quiet_paddle(), warnings_as_lines():
            if model is None:
                if (clip, pictures, chat_template) != (None, None, None):
                    raise ConfigError(
                        "--clip, --images and --chat-template go with a checkpoint: add --model DIR"
                    )
                rows = replay(folder, runtime, exact)
            elif exact or runtime != RuntimeOptions():
                raise ConfigError("with --model, everything that runs the bundle here is compared")
            else:
                with export_required():
                    compare = load()
                    bundle = open_bundle(folder)
                    if bundle.golden is not None:
                        # Not replayed here, but nobody shall find them broken later.
                        read_golden(bundle)
                    rows = compare(folder, model, clip, pictures, chat_template)
        _report(folder, rows, report, quiet)

    app.command()(verify)


def replay(folder: Path, runtime: RuntimeOptions, exact: bool) -> list[Comparison]:
    """The golden cases of a bundle on this machine, without its checkpoint.

    Raises: BundleError, also for a bundle without golden cases; DeviceError, ConfigError."""
    from paddle_recomp.vlm.loading import bundle_backend, bundle_decoder
    from paddle_recomp.vlm.replay import Player, replay_cases

    bundle = open_bundle(folder)
    golden = read_golden(bundle)
    if exact:
        golden = golden.exact()
    model = None if bundle.decoder is None else bundle_decoder(bundle, runtime.device)
    run_by = (runtime.device, runtime.backend, runtime.precision)
    player = Player(bundle, lambda one: bundle_backend(one, *run_by, graphs=()), model)
    return list(replay_cases(player, golden))


def _report(bundle: Path, rows: Sequence[Comparison], report: Path | None, quiet: bool) -> None:
    """Prints and writes what was found. Raises: typer.Exit with code 1 where a limit is broken."""
    broken, console = [row for row in rows if not row.passed], PlainConsole()
    if shown := broken if quiet else rows:
        print_table(console, shown)
    if report is not None:
        write_report(report, rows)
    console.say(f"{bundle}: {len(rows) - len(broken)} of {len(rows)} comparisons passed")
    if broken:
        line = f"{len(broken)} of {len(rows)} comparisons exceed their tolerance"
        PlainConsole(stderr=True).say(line)
        raise typer.Exit(1)


def print_table(console: PlainConsole, rows: Sequence[Comparison]) -> None:
    """Every comparison, one a line."""
    table = Table("of", "batch", "graph", "output", "measure", "value", "limit", "", box=None)
    for row in rows:
        table.add_row(
            one_line(row.case or row.runtime),
            str(row.batch),
            row.stage,
            row.name,
            row.measure,
            format(row.value, FORMATS.get(row.measure, ".4f")),
            f"{row.limit:g}",
            "ok" if row.passed else "FAILED",
        )
    console.print(table)


def write_report(path: Path, rows: Sequence[Comparison]) -> None:
    """All comparisons as JSON. Raises: ConfigError when the file cannot be written."""
    content = {
        "passed": all(row.passed for row in rows),
        "rows": [{**asdict(row), "passed": row.passed} for row in rows],
    }
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
