"""The options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from paddle_recomp.compression.config import CompressionConfig, preset
from paddle_recomp.config import GenerationConfig
from paddle_recomp.errors import ConfigError

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
        metavar="QUESTION", help="The pictures stand in front of it, or at each <image> in it."
    ),
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL")]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="A checkpoint or bundle folder; `demo`: the embedded bundle; `demo-checkpoint`: what "
        "it was exported from, in Paddle.",
    ),
]
ClipOption = Annotated[
    Path | None, typer.Option("--clip", help="The CLIP folder; default: MODEL/clip.")
]
LlmOption = Annotated[
    Path | None,
    typer.Option("--llm", help="For a bundle without one: the checkpoint with its language model."),
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", help="corrected (the paper's words, default) or faithful (its code)."),
]
MethodOption = Annotated[
    str | None, typer.Option("--method", help="recoverable, visual, random or uniform.")
]
SwitchOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set one switch of the algorithm."),
]
TokensOption = Annotated[int | None, typer.Option("--tokens", help="Exactly this many tokens.")]
RatioOption = Annotated[
    float | None, typer.Option("--ratio", help="Exactly this share of the patches, as 0.125.")
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", help="At most this many tokens.")
]
TtftOption = Annotated[
    float | None,
    typer.Option(
        "--ttft-ms", help="As many as let the answer begin in time; measures this machine once."
    ),
]
FullOption = Annotated[bool, typer.Option("--full", help="All tokens: no compression.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", help="cpu, gpu or gpu:N; for a bundle cpu, cuda, tensorrt or openvino."
    ),
]
MaxNewTokensOption = Annotated[int, typer.Option("--max-new-tokens", help="The longest answer.")]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", help="Draw tokens; 0: always the likeliest one.")
]
TopKOption = Annotated[int | None, typer.Option("--top-k", help="Draw from the K likeliest.")]
TopPOption = Annotated[
    float, typer.Option("--top-p", help="Draw from the fewest likeliest with this mass.")
]
RepetitionPenaltyOption = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1: repeat less.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Draw the same answer again.")]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", help="End in front of this text; may be repeated.")
]
BackendOption = Annotated[
    str | None,
    typer.Option("--backend", help="For a bundle: onnx (default) or paddle (Paddle Inference)."),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="Of Paddle Inference: fp32 (default), bf16, int8; of openvino: fp32, bf16.",
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", help="A folder that remembers what was seen in pictures."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def config_from_options(
    name: str | None, method: str | None, switches: list[str] | None
) -> CompressionConfig | None:
    """The configuration that the options ask for, None when they ask for nothing.

    Raises: ConfigError for an unknown preset, method, switch or value."""
    if name is None and method is None and not switches:
        return None
    config = preset(name or "corrected")
    options: dict[str, Any] = {} if method is None else {"method": method}
    for switch in switches or []:
        key, equals, value = switch.partition("=")
        if not equals:
            raise ConfigError(f"--set {switch}: expected NAME=VALUE")
        options[key] = value
    return config.with_text_options(**options)
