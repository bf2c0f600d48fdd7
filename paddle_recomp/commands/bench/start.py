"""The command `bench`: the time and memory of a model on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from paddle_recomp.bundle import Bundle
from paddle_recomp.commands.console import progress_bar, quiet_paddle, warnings_as_lines
from paddle_recomp.commands.options import (
    ChosenRuntimeOptions,
    ClipOption,
    JsonOption,
    LlmOption,
    ModelArgument,
    TemplateOption,
    loading_bar,
    with_options,
)
from paddle_recomp.commands.printing import PlainConsole, write_json
from paddle_recomp.commands.reports import loaded_dict
from paddle_recomp.errors import ConfigError
from paddle_recomp.preprocess import load_image


@with_options
def bench(
    *,
    model: ModelArgument = "demo",
    image: Annotated[
        Path | None, typer.Option("--image", help="A picture file; default: a shipped one.")
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option("--question", help="The first one; given twice, the second one too."),
    ] = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option("--tokens", help="Also exactly this many tokens (64); may be repeated."),
    ] = None,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", help="The length of every answer.")
    ] = 32,
    repeats: Annotated[
        int, typer.Option("--repeats", help="How often everything is measured.")
    ] = 3,
    clip: ClipOption = None,
    chat_template: TemplateOption = None,
    llm: LlmOption = None,
    runtime: ChosenRuntimeOptions,
    as_json: JsonOption = False,
) -> None:
    """Measure MODEL on this machine: uncompressed, with the dynamic budget, and with few tokens."""
    from paddle_recomp.commands.bench import BenchConfig, print_report, report_dict, shape_line
    from paddle_recomp.commands.bench import bench as measure
    from paddle_recomp.vlm.demo import demo_pictures
    from paddle_recomp.vlm.loading import find, load

    config = BenchConfig(tuple(tokens or ()), BenchConfig.questions, new_tokens, repeats)
    if question:
        if len(question) > 2:
            raise ConfigError(f"{len(question)} questions; expected a first and a second one")
        config = replace(config, questions=(question[0], question[-1]))
    picture = image or next(iter(demo_pictures()))
    load_image(picture)
    found = find(model, clip, llm, runtime.compress, chat_template)
    config.budgets(
        found.num_patches if isinstance(found, Bundle) else found.spec.vision.num_patches
    )
    console = PlainConsole(stderr=True)
    device, backend, precision = runtime.device, runtime.backend, runtime.precision
    with quiet_paddle(), warnings_as_lines():
        with loading_bar(console, model) as on_progress:
            vlm = load(
                model,
                clip,
                None,
                device,
                on_progress,
                llm,
                backend,
                precision,
                compress=runtime.compress,
                template=chat_template,
            )
        with progress_bar(console, "measuring") as on_answer:
            report = measure(vlm, picture, config, on_answer)
    if as_json:
        write_json({"model": model, "loaded": loaded_dict(vlm), **report_dict(report)})
    else:
        print_report(PlainConsole(), report, f"{model}: {shape_line(found)}")
