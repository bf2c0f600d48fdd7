"""The options of the command `export`, and the plan that they make. Modules that need the extras
are imported when a plan is made, so that the help works without them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paddle_recomp.commands.options import (
    ClipOption,
    CompressionOptions,
    TemplateOption,
    check_folder_of,
)
from paddle_recomp.compression.config import PRESETS, CompressionConfig
from paddle_recomp.errors import ConfigError

if TYPE_CHECKING:
    from .calibration import Quantisation
    from .plan import ExportPlan


@dataclass(frozen=True, kw_only=True)
class QuantisationOptions:
    """The way in which towers become INT8, and the samples on which that is measured."""

    kind: Annotated[
        str | None, typer.Option("--quantization", help="Of int8: dynamic (default) or static.")
    ] = None
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", help="Of static: minmax (default), entropy, percentile."),
    ] = None
    pictures: Annotated[
        Path | None, typer.Option("--calibrate", help="A folder of pictures for int8.")
    ] = None
    questions: Annotated[
        Path | None, typer.Option("--questions", help="A file of questions for int8, one a line.")
    ] = None
    target_cosine: Annotated[
        float | None, typer.Option("--target-cosine", help="What int8 must keep; default 0.999.")
    ] = None
    target_overlap: Annotated[
        float | None,
        typer.Option(
            "--target-overlap", help="Share of the patches kept that int8 must keep; default 0.85."
        ),
    ] = None
    scales: Annotated[
        Path | None,
        typer.Option("--scales", help="scales.json of an earlier int8 export, to take its ranges."),
    ] = None

    def build(self) -> Quantisation | None:
        """None when the options ask for nothing.

        Raises: ConfigError."""
        from .calibration import Quantisation
        from .scales import read_scales

        given: dict[str, Any] = {
            "kind": self.kind,
            "calibration": self.calibration,
            "pictures": self.pictures,
            "questions": self.questions,
            "target_cosine": self.target_cosine,
            "target_overlap": self.target_overlap,
        }
        chosen = {key: value for key, value in given.items() if value is not None}
        if self.scales is not None:
            found = read_scales(self.scales)
            as_found = {"kind": found.kind, "calibration": found.calibration, "scales": found}
            chosen = {**as_found, **chosen}
        return Quantisation(**chosen) if chosen else None


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """All options of an export."""

    model: Annotated[
        str, typer.Option("--model", help="A checkpoint folder, or `demo`: the embedded one.")
    ] = "demo"
    output: Annotated[Path | None, typer.Option("--out", help="The bundle's folder.")] = None
    clip: ClipOption = None
    chat_template: TemplateOption = None
    compression: CompressionOptions
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            metavar="NAME",
            help="Add a compress graph beside the default: a method, or a preset whose tower "
            "options are those of the default; may be repeated.",
        ),
    ] = None
    precision: Annotated[str, typer.Option("--precision", help="fp32 or int8.")] = "fp32"
    operators: Annotated[
        str,
        typer.Option(
            "--operators", help="onnxruntime: with its fused attention; onnx: plain, for OpenVINO."
        ),
    ] = "onnxruntime"
    decoder: Annotated[
        str | None,
        typer.Option(
            "--decoder", help="fp32, int8 or int4, or none; default: as the bundle's precision."
        ),
    ] = None
    quantisation: QuantisationOptions
    fused: Annotated[
        bool,
        typer.Option(
            "--fused", help="Also write encoder: the three graphs in one, for one-shot use."
        ),
    ] = False
    golden: Annotated[
        bool,
        typer.Option(
            "--golden", help="Also record golden cases, for `recomp verify` on other machines."
        ),
    ] = False
    paddle: Annotated[
        bool, typer.Option("--paddle", help="Also write the graphs for Paddle Inference.")
    ] = False
    paddle_int8: Annotated[
        Path | None,
        typer.Option(
            "--paddle-int8",
            metavar="PYTHON",
            help="Experimental: its INT8, by the interpreter of an environment with Paddle 3.1.1.",
        ),
    ] = None
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Measure what each layer costs in int8; JSON goes here."),
    ] = None

    @property
    def folder(self) -> Path:
        """The folder for the bundle. Raises: ConfigError when no folder is named."""
        if self.output is None:
            raise ConfigError("name the folder to write (--out DIR)")
        return self.output

    def build(self) -> ExportPlan:
        """Raises: ConfigError for options that do not fit together."""
        from .plan import ExportPlan

        check_folder_of(self.report)
        config = self.compression.build() or CompressionConfig()
        return ExportPlan(
            model=self.model,
            clip=self.clip,
            template=self.chat_template,
            config=config,
            also=tuple(_beside(config, name) for name in self.also or ()),
            precision=self.precision,
            operators=self.operators,
            quantisation=self.quantisation.build(),
            decoder=self.decoder,
            fused=self.fused,
            golden=self.golden,
            paddle=self.paddle,
            paddle_int8=self.paddle_int8,
            ranked=self.report is not None,
        )


def _beside(config: CompressionConfig, name: str) -> CompressionConfig:
    """A preset, or a method with the towers of `config`.

    Raises: ConfigError for an unknown name."""
    if name in PRESETS:
        return PRESETS[name]
    return CompressionConfig(name, **asdict(config.towers))
