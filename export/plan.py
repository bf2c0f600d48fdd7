"""What an export is asked for: one frozen value, refused before any work where it does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from paddle_recomp.bundle import DECODER_PRECISIONS, PRECISIONS
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.compression.registry import get_method
from paddle_recomp.errors import ConfigError
from paddle_recomp.vlm.demo import DEMO

from .calibration import Quantisation
from .optimise import OPERATORS

NO_DECODER = "none"


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """A checkpoint, and what becomes of it."""

    model: str | Path = DEMO
    """A folder, or a name of the embedded model."""
    clip: str | Path | None = None
    """A folder; None: the one in the model's."""
    config: CompressionConfig = field(default_factory=CompressionConfig)
    precision: str = "fp32"
    """Of the towers, and of the decoder where `decoder` says nothing else."""
    operators: str = "onnxruntime"
    """One of OPERATORS."""
    quantisation: Quantisation | None = None
    """Of INT8 towers; None: the defaults."""
    decoder: str | None = None
    """The precision of the language model; `none` leaves it out."""
    fused: bool = False
    """Also write `encoder`, the one-shot graph, in each format."""
    paddle: bool = False
    """Also write the graphs for Paddle Inference, in float."""
    paddle_int8: Path | None = None
    """Also write its towers in INT8, made by this interpreter of another environment: see
    `paddle_int8.py`."""
    golden: bool = False
    """Also record golden cases, which `recomp verify` replays on other machines."""
    ranked: bool = False
    """Also measure what each layer costs in INT8."""

    def __post_init__(self) -> None:
        """Raises: ConfigError."""
        decoders = (*DECODER_PRECISIONS, NO_DECODER)
        for name, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("operators", self.operators, OPERATORS),
        ):
            if value not in known:
                raise ConfigError(f"unknown {name} {value!r}; known: {', '.join(known)}")
        if self.decoder is not None and self.decoder not in decoders:
            raise ConfigError(
                f"unknown precision {self.decoder!r} of the decoder; known: {', '.join(decoders)}"
            )
        if self.quantisation is not None and not self.quantised:
            raise ConfigError(f"precision {self.precision!r} is not quantised; choose int8")
        if self.paddle_int8 is not None and not self.paddle:
            raise ConfigError("INT8 for Paddle Inference joins its float graphs: add --paddle")
        if self.ranked and self.precision != "int8":
            raise ConfigError("--report needs --precision int8")
        get_method(self.config.method)

    @property
    def quantised(self) -> bool:
        """Whether towers become INT8, for which there have to be samples."""
        return self.precision == "int8" or self.paddle_int8 is not None

    @property
    def decoder_precision(self) -> str | None:
        """None where the bundle gets no decoder."""
        chosen = self.decoder or self.precision
        return None if chosen == NO_DECODER else chosen
