"""The plan of an export: one frozen value, which is validated before any work begins."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from paddle_recomp.bundle import DECODER_PRECISIONS, PRECISIONS
from paddle_recomp.bundle.contract import Graph, Signature, signatures
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.compression.registry import get_method
from paddle_recomp.errors import ConfigError
from paddle_recomp.vlm.demo import DEMO

from .calibration import Quantisation
from .optimise import OPERATORS

NO_DECODER = "none"


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """A checkpoint, and the parts and precisions of the bundle made from it."""

    model: str | Path = DEMO
    """A folder, or a name of the embedded model."""
    clip: str | Path | None = None
    """A folder; None: the folder `clip` in the model's."""
    template: str | None = None
    """The chat template in place of the checkpoint's own: a name, or a file."""
    config: CompressionConfig = field(default_factory=CompressionConfig)
    also: tuple[CompressionConfig, ...] = ()
    """Configurations of further compress graphs over the same vision graph; that of `config` is the
    default."""
    precision: str = "fp32"
    """The precision of the towers, and of the decoder unless `decoder` names another."""
    operators: str = "onnxruntime"
    """One of OPERATORS."""
    quantisation: Quantisation | None = None
    """The way in which towers become INT8; None: the defaults."""
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
    """Also measure the cost of each layer in INT8."""

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
        for one in self.also:
            _check_same_towers(self.config, one)
        names = [self.config.method, *(one.method for one in self.also)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"two compress graphs would be called {min(twice)!r}")

    @property
    def compressors(self) -> dict[str, CompressionConfig]:
        """Every compress graph by its name, the default first."""
        return {one.method: one for one in (self.config, *self.also)}

    @property
    def reads(self) -> tuple[str, ...]:
        """All inputs of the compress graphs, which the vision graph has to provide."""
        taken = (get_method(name).graph_inputs for name in self.compressors)
        return tuple(dict.fromkeys(name for names in taken for name in names))

    @property
    def signatures(self) -> dict[Graph, Signature]:
        """The inputs and outputs of each graph; `compress` is the default one."""
        own = signatures(get_method(self.config.method).graph_inputs)
        return {**own, "vision": signatures(self.reads)["vision"]}

    @property
    def quantised(self) -> bool:
        """Whether towers become INT8, which needs samples."""
        return self.precision == "int8" or self.paddle_int8 is not None

    @property
    def decoder_precision(self) -> str | None:
        """The decoder's precision; None if the bundle gets no decoder."""
        chosen = self.decoder or self.precision
        return None if chosen == NO_DECODER else chosen


def _check_same_towers(first: CompressionConfig, other: CompressionConfig) -> None:
    """Raises: ConfigError naming the option of the towers that differs."""
    ours, theirs = asdict(first.towers), asdict(other.towers)
    for name, value in ours.items():
        if theirs[name] != value:
            raise ConfigError(
                f"compress graphs of one bundle share its towers: {name} is {value} for the "
                f"default, {first.method!r}, and {theirs[name]} for the further {other.method!r}"
            )
