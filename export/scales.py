"""The results of a quantisation in a file, so that another export of the same model need not
calibrate again, and a person can read and change them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paddle_recomp.bundle.contract import Graph
from paddle_recomp.errors import ConfigError
from paddle_recomp.json_files import read_json

SCALES = "scales.json"
"""The name of the file in an INT8 bundle."""
_FORMAT = 2

Range = tuple[float, float]
"""The lowest and highest number that a scale has to cover; zero is between them."""


@dataclass(frozen=True)
class Scales:
    """The way in which the towers were quantised, with the numbers."""

    kind: str
    calibration: str
    ranges: Mapping[Graph, Mapping[str, Range]]
    """The range of each layer's input, by graph and layer; empty where ranges are measured at run
    time."""
    in_float: Mapping[Graph, tuple[str, ...]]
    """The layers that stay in float."""

    def __post_init__(self) -> None:
        """Raises: ConfigError."""
        for graph, layers in self.ranges.items():
            for layer, (low, high) in layers.items():
                if not (math.isfinite(low) and math.isfinite(high) and low <= 0 <= high):
                    raise ConfigError(
                        f"the range of {layer} in {graph} is {low:g} to {high:g}; expected finite "
                        "numbers with zero between them"
                    )

    def ranges_for(self, graph: Graph, layers: Collection[str]) -> dict[str, Range]:
        """The ranges of the layers of a graph. Raises: ConfigError for layers of another model."""
        found = dict(self.ranges.get(graph, {}))
        if different := found.keys() ^ set(layers):
            raise ConfigError(_of_another_model(graph, min(different)))
        return found

    def float_layers(self, graph: Graph, layers: Collection[str]) -> set[str]:
        """The layers of a graph that stay in float. Raises: ConfigError for layers of another
        model."""
        found = set(self.in_float.get(graph, ()))
        if unknown := found - set(layers):
            raise ConfigError(_of_another_model(graph, min(unknown)))
        return found


def _of_another_model(graph: Graph, layer: str) -> str:
    return f"the scales are of another model: they and the graph {graph!r} differ in {layer}"


def write_scales(path: Path, scales: Scales, samples: Mapping[str, Any]) -> None:
    """Writes them, with the counts and checksums of the pictures and questions of the
    calibration."""
    content = {"format": _FORMAT, **asdict(scales), "samples": dict(samples)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_scales(path: Path) -> Scales:
    """Raises: ConfigError when the file cannot be read or does not have the form of
    `write_scales`."""
    content = read_json(path, ConfigError, ConfigError)
    if content.get("format") != _FORMAT:
        raise ConfigError(f"{path} has format {content.get('format')!r}; expected {_FORMAT}")
    try:
        return Scales(
            kind=str(content["kind"]),
            calibration=str(content["calibration"]),
            ranges={
                graph: {layer: (float(low), float(high)) for layer, (low, high) in layers.items()}
                for graph, layers in content["ranges"].items()
            },
            in_float={graph: tuple(layers) for graph, layers in content["in_float"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not a file of scales: {error!r}") from error
