"""The command `recomp`: ask, chat, explain, info, demo, bench."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console

from paddle_recomp import __version__
from paddle_recomp.bundle import Bundle
from paddle_recomp.commands.console import (
    loading_bar,
    measuring_bar,
    quiet_paddle,
    run_app,
    warnings_as_lines,
)
from paddle_recomp.commands.options import (
    DEFAULTS,
    BackendOption,
    CacheOption,
    ClipOption,
    DeviceOption,
    FullOption,
    ImagesArgument,
    JsonOption,
    LlmOption,
    MaxNewTokensOption,
    MaxTokensOption,
    MethodOption,
    ModelArgument,
    ModelOption,
    PrecisionOption,
    PresetOption,
    QuestionArgument,
    RatioOption,
    RepetitionPenaltyOption,
    SeedOption,
    StopOption,
    SwitchOption,
    TemperatureOption,
    TokensOption,
    TopKOption,
    TopPOption,
    TtftOption,
    config_from_options,
)
from paddle_recomp.commands.reports import (
    answer_dict,
    print_answer,
    print_bundle,
    print_checkpoint,
    working,
)
from paddle_recomp.config import GenerationConfig, TokenBudget
from paddle_recomp.errors import ConfigError
from paddle_recomp.explain import save_answer
from paddle_recomp.preprocess import check_question, load_image
from paddle_recomp.vlm.conversation import DEFAULT_MODE, check_mode
from paddle_recomp.vlm.feature_cache import FeatureCache

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Ask a LLaVA-class model about a picture with the visual tokens that matter.",
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Ask a LLaVA-class model about a picture with the visual tokens that matter."""
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def ask(
    images: ImagesArgument,
    question: QuestionArgument,
    model: ModelOption = "demo",
    clip: ClipOption = None,
    llm: LlmOption = None,
    preset_name: PresetOption = None,
    method: MethodOption = None,
    switches: SwitchOption = None,
    tokens: TokensOption = None,
    ratio: RatioOption = None,
    max_tokens: MaxTokensOption = None,
    ttft_ms: TtftOption = None,
    full: FullOption = False,
    overlay: Annotated[
        Path | None, typer.Option("--overlay", help="Draw what was kept into this PNG file.")
    ] = None,
    max_new_tokens: MaxNewTokensOption = DEFAULTS.max_new_tokens,
    temperature: TemperatureOption = DEFAULTS.temperature,
    top_k: TopKOption = DEFAULTS.top_k,
    top_p: TopPOption = DEFAULTS.top_p,
    repetition_penalty: RepetitionPenaltyOption = DEFAULTS.repetition_penalty,
    seed: SeedOption = DEFAULTS.seed,
    stop: StopOption = None,
    device: DeviceOption = "cpu",
    backend: BackendOption = None,
    precision: PrecisionOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer QUESTION about one IMAGE, several, or none."""
    from paddle_recomp.vlm.loading import load

    config = config_from_options(preset_name, method, switches)
    budget = TokenBudget(tokens, max_tokens, full, ratio, ttft_ms)
    generation = GenerationConfig(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    pictures = _check_inputs(images, question, overlay)
    console = Console(stderr=True)
    features = None if cache is None else FeatureCache(folder=cache)
    with quiet_paddle(), warnings_as_lines() as seen_warnings:
        with loading_bar(console, model) as on_progress:
            vlm = load(model, clip, config, device, on_progress, llm, backend, precision, features)
        if budget.ttft_ms is not None:
            with measuring_bar(console) as on_step:
                vlm.latency(on_step)
        with working(console, "answering"):
            answer = vlm.ask(images, question, budget, generation)
    if as_json:
        typer.echo(json.dumps(answer_dict(images, question, answer, seen_warnings), indent=2))
    else:
        print_answer(Console(highlight=False), answer)
    if overlay is not None:
        processor = vlm.encoder.image_processor
        save_answer(
            overlay, pictures, answer.compressed, answer.stages, processor, question, answer.text
        )


@app.command()
def chat(
    images: ImagesArgument,
    model: ModelOption = "demo",
    clip: ClipOption = None,
    llm: LlmOption = None,
    preset_name: PresetOption = None,
    method: MethodOption = None,
    switches: SwitchOption = None,
    tokens: TokensOption = None,
    ratio: RatioOption = None,
    max_tokens: MaxTokensOption = None,
    ttft_ms: TtftOption = None,
    full: FullOption = False,
    mode: Annotated[str, typer.Option("--mode", help="append, recompress or keep.")] = DEFAULT_MODE,
    max_new_tokens: MaxNewTokensOption = DEFAULTS.max_new_tokens,
    temperature: TemperatureOption = DEFAULTS.temperature,
    top_k: TopKOption = DEFAULTS.top_k,
    top_p: TopPOption = DEFAULTS.top_p,
    repetition_penalty: RepetitionPenaltyOption = DEFAULTS.repetition_penalty,
    seed: SeedOption = DEFAULTS.seed,
    stop: StopOption = None,
    device: DeviceOption = "cpu",
    backend: BackendOption = None,
    precision: PrecisionOption = None,
    cache: CacheOption = None,
) -> None:
    """Talk about one IMAGE, several, or none: questions and commands, line by line (`/help`)."""
    from paddle_recomp.commands.chat.session import ChatSession
    from paddle_recomp.commands.chat.terminal import run
    from paddle_recomp.vlm.loading import load

    config = config_from_options(preset_name, method, switches)
    budget = TokenBudget(tokens, max_tokens, full, ratio, ttft_ms)
    generation = GenerationConfig(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    check_mode(mode)
    for image in images:
        load_image(image)
    features = FeatureCache(folder=cache)
    with quiet_paddle(), warnings_as_lines():
        with loading_bar(Console(stderr=True), model) as on_progress:
            vlm = load(model, clip, config, device, on_progress, llm, backend, precision, features)
        run(ChatSession(vlm, Console(), images, mode, budget, generation))


@app.command()
def explain(
    images: ImagesArgument,
    question: QuestionArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG file to write.")] = Path(
        "explain.png"
    ),
    model: ModelOption = "demo",
    clip: ClipOption = None,
    preset_name: PresetOption = None,
    method: MethodOption = None,
    switches: SwitchOption = None,
    tokens: TokensOption = None,
    ratio: RatioOption = None,
    max_tokens: MaxTokensOption = None,
    full: FullOption = False,
    device: DeviceOption = "cpu",
    backend: BackendOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Draw which patches of each IMAGE are kept for QUESTION, without the language model."""
    from paddle_recomp.vlm.loading import find, load_encoder

    config = config_from_options(preset_name, method, switches)
    budget = TokenBudget(tokens=tokens, ratio=ratio, max_tokens=max_tokens, full=full)
    if not images:
        raise ConfigError("there is no picture to explain; expected IMAGE and QUESTION")
    pictures = _check_inputs(images, question, output)
    console = Console(stderr=True)
    with quiet_paddle(), warnings_as_lines():
        with working(console, f"loading {model}"):
            found = find(model, clip)
            encoder = load_encoder(found, config, device, backend=backend, precision=precision)
        with working(console, "compressing"):
            (prompt,) = encoder.compress([encoder.see(images)], [question], budget)
    processor = encoder.image_processor
    save_answer(output, pictures, prompt.compressed, encoder.stages, processor, question)
    typer.echo(output)


@app.command()
def info(
    model: ModelArgument = "demo",
    clip: ClipOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a checkpoint or a bundle holds, after checking every key, shape and checksum.
    Needs no paddle."""
    from paddle_recomp.vlm.loading import find

    found, console = find(model, clip), Console(highlight=False)
    if isinstance(found, Bundle):
        found.verify()
        print_bundle(console, found, as_json)
    else:
        print_checkpoint(console, found, as_json)


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A folder for the overlays.")
    ] = Path("build/overlays"),
    model: ModelOption = "demo",
    llm: LlmOption = None,
    tokens: TokensOption = None,
    ratio: RatioOption = None,
    max_tokens: MaxTokensOption = None,
    full: FullOption = False,
    device: DeviceOption = "cpu",
) -> None:
    """Ask the embedded model questions about the pictures that ship with it."""
    from paddle_recomp.commands.demo import run_demo
    from paddle_recomp.vlm.loading import load

    budget = TokenBudget(tokens=tokens, ratio=ratio, max_tokens=max_tokens, full=full)
    console = Console(highlight=False)
    with quiet_paddle(), warnings_as_lines():
        with loading_bar(Console(stderr=True), model) as on_progress:
            vlm = load(model, None, None, device, on_progress, llm)
        run_demo(vlm, budget, output, console)


@app.command()
def bench(
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
    llm: LlmOption = None,
    device: DeviceOption = "cpu",
    backend: BackendOption = None,
    precision: PrecisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure MODEL on this machine: uncompressed, with the dynamic budget, and with few tokens."""
    from paddle_recomp.commands.bench import BenchConfig, print_report, report_dict, shape_line
    from paddle_recomp.commands.bench import bench as measure
    from paddle_recomp.commands.demo import demo_pictures
    from paddle_recomp.vlm.loading import find, load

    config = BenchConfig(tuple(tokens or ()), BenchConfig.questions, new_tokens, repeats)
    if question:
        if len(question) > 2:
            raise ConfigError(f"{len(question)} questions; expected a first and a second one")
        config = replace(config, questions=(question[0], question[-1]))
    picture = image or next(iter(demo_pictures()))
    load_image(picture)
    found = find(model, clip, llm)
    config.budgets(
        found.num_patches if isinstance(found, Bundle) else found.spec.vision.num_patches
    )
    console = Console(stderr=True)
    with quiet_paddle(), warnings_as_lines():
        with loading_bar(console, model) as on_progress:
            vlm = load(model, clip, None, device, on_progress, llm, backend, precision)
        with measuring_bar(console) as on_answer:
            report = measure(vlm, picture, config, on_answer)
    if as_json:
        typer.echo(json.dumps({"model": model, **report_dict(report)}, indent=2))
    else:
        print_report(Console(highlight=False), report, f"{model}: {shape_line(found)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command `recomp`; see `run_app`."""
    return run_app(app, "recomp", arguments)


def _check_inputs(images: Sequence[Path], question: str, output: Path | None) -> list[Image.Image]:
    """The pictures. Everything that can be refused before a model is loaded is refused here."""
    if not images and Path(question).is_file():
        raise ConfigError(f"there is no question, only the file {question}")
    if not images and output is not None:
        raise ConfigError(f"{output}: there is no picture to draw on")
    check_question(question, len(images))
    pictures = [load_image(image) for image in images]
    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigError(f"{output}: there is no folder {output.absolute().parent}")
    return pictures


if __name__ == "__main__":
    sys.exit(main())
