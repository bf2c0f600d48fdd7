"""The options that commands share. Each is declared once, as a field of a dataclass whose methods
interpret the options together; a command takes such a dataclass as a parameter."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer
from rich.console import Console

from paddle_recomp.commands.console import OnProgress, progress_bar
from paddle_recomp.compression.config import DEFAULT_PRESET, PRESETS, CompressionConfig, preset
from paddle_recomp.compression.registry import METHODS
from paddle_recomp.config import GenerationConfig, TokenBudget, listing
from paddle_recomp.errors import ConfigError
from paddle_recomp.files import is_folder
from paddle_recomp.preprocess import TEMPLATES

if TYPE_CHECKING:
    from paddle_recomp.vlm.feature_cache import FeatureCache
    from paddle_recomp.vlm.vlm import VLM

_T = TypeVar("_T")
DEFAULTS = GenerationConfig()

ImagesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGE", help="Picture files.", default_factory=list, show_default=False
    ),
]
QuestionArgument = Annotated[
    str,
    typer.Argument(
        metavar="QUESTION",
        help="The pictures come in front of the question; to place them, write <image> for each.",
    ),
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL")]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="A checkpoint or bundle folder; `demo`: the embedded bundle; `demo-checkpoint`: its "
        "checkpoint, in Paddle.",
    ),
]
ClipOption = Annotated[
    Path | None, typer.Option("--clip", help="The CLIP folder; default: MODEL/clip.")
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="NAME|FILE",
        help=f"For a checkpoint, in place of its own: {listing(TEMPLATES)}, or a Jinja file.",
    ),
]
LlmOption = Annotated[
    Path | None,
    typer.Option("--llm", help="For a bundle without one: the checkpoint with its language model."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", help="cpu, gpu or gpu:N; for a bundle cpu, cuda, tensorrt or openvino."
    ),
]


def with_options(command: Callable[..., _T]) -> Callable[..., _T]:
    """Makes a function a command of typer. A parameter that is a dataclass of options stands for
    all its fields, nested ones too: typer sees each field as a parameter, and the function is
    called with the dataclass."""
    hints = get_type_hints(command, include_extras=True)
    hints.pop("return", None)
    shown: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        shown += _shown(hint) if is_dataclass(hint) else [parameter.replace(annotation=hint)]

    @functools.wraps(command)
    def run(**given: Any) -> _T:
        return command(**_filled(hints, given))

    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in shown]
    run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
    return run


def _shown(options: Any) -> list[inspect.Parameter]:
    """The parameters that the fields of a dataclass stand for, in their order."""
    hints, found = get_type_hints(options, include_extras=True), []
    for field in fields(options):
        hint, kind = hints[field.name], inspect.Parameter.KEYWORD_ONLY
        found += (
            _shown(hint)
            if is_dataclass(hint)
            else [inspect.Parameter(field.name, kind, default=field.default, annotation=hint)]
        )
    return found


def _filled(hints: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a command: typer's values, with each group of them as its dataclass."""
    return {
        name: hint(**_filled(get_type_hints(hint, include_extras=True), given))
        if isinstance(hint, type) and is_dataclass(hint)
        else given[name]
        for name, hint in hints.items()
    }


def check_folder_of(output: Path | None) -> None:
    """Refuses a file that could not be written, before the work for it begins.

    Raises: ConfigError when its folder does not exist."""
    if output is not None and not is_folder(output.absolute().parent):
        raise ConfigError(f"{output}: there is no folder {output.absolute().parent}")


@dataclass(frozen=True, kw_only=True)
class CompressionOptions:
    """Which method compresses, and its switches."""

    preset_name: Annotated[
        str | None,
        typer.Option(
            "--preset", help=f"Named options: {listing(PRESETS)}; default: {DEFAULT_PRESET}."
        ),
    ] = None
    method: Annotated[
        str | None, typer.Option("--method", help=f"{listing(METHODS)}; see `recomp methods`.")
    ] = None
    switches: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set one switch of the algorithm."),
    ] = None

    def build(self) -> CompressionConfig | None:
        """None when the options ask for nothing.

        Raises: ConfigError for an unknown preset, method, switch or value."""
        if self.preset_name is None and self.method is None and not self.switches:
            return None
        config = preset(self.preset_name or DEFAULT_PRESET)
        options: dict[str, Any] = {} if self.method is None else {"method": self.method}
        for switch in self.switches or []:
            key, equals, value = switch.partition("=")
            if not equals:
                raise ConfigError(f"--set {switch}: expected NAME=VALUE")
            options[key] = value
        return config.with_text_options(**options)


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """How many tokens the pictures may become."""

    tokens: Annotated[int | None, typer.Option("--tokens", help="Exactly this many tokens.")] = None
    ratio: Annotated[
        float | None, typer.Option("--ratio", help="Exactly this share of the patches, as 0.125.")
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="At most this many tokens.")
    ] = None
    full: Annotated[bool, typer.Option("--full", help="All tokens: no compression.")] = False

    def build(self) -> TokenBudget:
        """Raises: ConfigError for options that exclude each other or are out of range."""
        return TokenBudget(**_values(self))


@dataclass(frozen=True, kw_only=True)
class TimedBudgetOptions(BudgetOptions):
    """The same for commands with a language model, whose time to the first token can be limited."""

    ttft_ms: Annotated[
        float | None,
        typer.Option(
            "--ttft-ms",
            help="Choose the number so that the answer begins within this many milliseconds, but "
            "at most --max-tokens; the first use measures this machine.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How an answer is drawn, and where it ends."""

    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="The longest answer.")] = (
        DEFAULTS.max_new_tokens
    )
    temperature: Annotated[
        float, typer.Option("--temperature", help="Draw tokens; 0: always the likeliest one.")
    ] = DEFAULTS.temperature
    top_k: Annotated[int | None, typer.Option("--top-k", help="Draw from the K likeliest.")] = (
        DEFAULTS.top_k
    )
    top_p: Annotated[
        float, typer.Option("--top-p", help="Draw from the fewest likeliest with this mass.")
    ] = DEFAULTS.top_p
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="Above 1: repeat less.")
    ] = DEFAULTS.repetition_penalty
    seed: Annotated[int | None, typer.Option("--seed", help="Draw the same answer again.")] = (
        DEFAULTS.seed
    )
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", help="End in front of this text; may be repeated."),
    ] = None

    def build(self) -> GenerationConfig:
        """Raises: ConfigError for a value out of range."""
        return GenerationConfig(**{**_values(self), "stop": tuple(self.stop or ())})


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """The runtime of a model."""

    device: DeviceOption = "cpu"
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend", help="For a bundle: onnx (default) or paddle (Paddle Inference)."
        ),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            help="Of Paddle Inference: fp32 (default), bf16, int8; of openvino: fp32, bf16.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ChosenRuntimeOptions(RuntimeOptions):
    """The same, with the choice among a bundle's compressors."""

    compress: Annotated[
        str | None,
        typer.Option("--compress", help="For a bundle with several compressors: the name of one."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """The options that `ask` and `chat` share: a model, how it compresses, and how it answers."""

    model: ModelOption = "demo"
    clip: ClipOption = None
    chat_template: TemplateOption = None
    llm: LlmOption = None
    compression: CompressionOptions
    budget: TimedBudgetOptions
    generation: GenerationOptions
    runtime: ChosenRuntimeOptions
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="A folder that remembers what was seen in pictures."),
    ] = None

    def load(self, console: Console, features: FeatureCache | None) -> VLM:
        """The model that the options name, behind a progress bar.

        Raises: ConfigError, and as `vlm.loading.load`."""
        from paddle_recomp.vlm.loading import load

        run_by, config = self.runtime, self.compression.build()
        with loading_bar(console, self.model) as on_progress:
            return load(
                self.model,
                self.clip,
                config,
                run_by.device,
                on_progress,
                self.llm,
                run_by.backend,
                run_by.precision,
                features,
                run_by.compress,
                self.chat_template,
            )


def loading_bar(console: Console, model: str) -> AbstractContextManager[OnProgress]:
    """Shows the bytes of a model, once reading them takes longer than a second."""
    return progress_bar(console, f"loading {model}", of_bytes=True, delay=1)


def _values(options: Any) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in fields(options)}
