"""INT8 towers that keep their accuracy: the layers that would cost the most stay in float."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from paddle_recomp.bundle.comparison import mean_cosine
from paddle_recomp.bundle.contract import Graph

from .calibration import Arrays, Quantisation, Samples, outputs_of, ranges_of
from .errors import ExportError
from .onnx_graph import OnnxGraph
from .optimise import check
from .quantise import layer_of, quantise, quantised_inputs, weight_nodes
from .scales import Range, Scales
from .writing import write_model

TOWERS: tuple[Graph, ...] = ("vision", "text")
GUARDED = ("features", "keys", "patch_embeds", "text_embeds")
"""Outputs whose cosine is held to the target."""

_MOST_IN_FLOAT = 0.5
"""If more than this share of a tower's weights stays in float, the tower is hardly INT8."""
_RANKED_ON = 4
"""A ranking uses this number of feeds, because it runs the tower once for every layer and feed."""


@dataclass(frozen=True)
class Sensitivity:
    """The cost of one layer when it alone is INT8."""

    graph: Graph
    layer: str
    cosine: float
    """The lowest cosine among the guarded outputs."""


@dataclass
class Outcome:
    """The result of quantising the towers."""

    cosine: dict[str, float] = field(default_factory=dict)
    """The mean cosine over all vectors of an output, by its name."""
    in_float: dict[Graph, list[str]] = field(default_factory=dict)
    """The layers that stayed in float to meet the target."""
    ranges: dict[Graph, dict[str, Range]] = field(default_factory=dict)
    """The range of each layer's input; empty where ranges are measured at run time."""
    ranking: list[Sensitivity] = field(default_factory=list)
    """The layers by descending cost; empty where no ranking was needed or asked for."""


def quantise_towers(
    folder: Path, wanted: Quantisation, samples: Samples, ranked: bool = False
) -> Outcome:
    """Replaces vision.onnx and text.onnx by INT8 ones; `ranked` asks for the ranking in any case.

    Raises: ExportError when the target cannot be met, with the cosine that was reached."""
    outcome = Outcome()
    for name in TOWERS:
        _quantise_tower(folder / f"{name}.onnx", name, wanted, samples, ranked, outcome)
    return outcome


def cosines(expected: Sequence[Arrays], found: Sequence[Arrays]) -> dict[str, float]:
    """Mean cosine of the vectors along the last axis, of each guarded output."""
    names = [name for name in expected[0] if name in GUARDED]
    return {
        name: float(
            np.mean([mean_cosine(a[name], b[name]) for a, b in zip(expected, found, strict=True)])
        )
        for name in names
    }


def _quantise_tower(
    path: Path,
    name: Graph,
    wanted: Quantisation,
    samples: Samples,
    ranked: bool,
    outcome: Outcome,
) -> None:
    model, feeds = onnx.load(path), samples.feeds[name]
    metadata = {item.key: item.value for item in model.metadata_props}
    graph = OnnxGraph.read(model, [info.name for info in model.graph.output])
    layers: dict[str, list[str]] = {}
    for weight in weight_nodes(graph):
        layers.setdefault(layer_of(weight), []).append(weight)
    expected, ranges = outputs_of(model, name, feeds), None
    if wanted.kind == "static":
        outcome.ranges[name] = _layer_ranges(model, graph, name, wanted, feeds)
        inputs = quantised_inputs(graph)
        ranges = {inputs[layer]: limits for layer, limits in outcome.ranges[name].items()}
    del model

    def attempt(chosen: Iterable[str]) -> onnx.ModelProto:
        weights = [weight for layer in chosen for weight in layers[layer]]
        return quantise(graph, weights, ranges).model(metadata)

    def measure(made: onnx.ModelProto, count: int | None = None) -> dict[str, float]:
        return cosines(expected[:count], outputs_of(made, name, feeds[:count]))

    in_float = set() if wanted.scales is None else wanted.scales.float_layers(name, layers)
    chosen = [layer for layer in layers if layer not in in_float]
    made = attempt(chosen)
    reached = measure(made)
    ranking: list[Sensitivity] = []
    if ranked or not _met(reached, wanted):
        for layer in layers:
            cosine = min(measure(attempt([layer]), _RANKED_ON).values())
            ranking.append(Sensitivity(name, layer, cosine))
        ranking.sort(key=lambda row: row.cosine)

    size = {layer: sum(graph.constants[w].size for w in layers[layer]) for layer in layers}
    left = [row.layer for row in ranking if row.layer in chosen]
    while not _met(reached, wanted):
        tried = [layer for layer in chosen if layer != left[0]]
        if sum(size[layer] for layer in tried) < (1 - _MOST_IN_FLOAT) * sum(size.values()):
            kept = len(layers) - len(chosen)
            raise ExportError(_unreachable(name, wanted, reached, kept, len(layers)))
        chosen, left = tried, left[1:]
        made = attempt(chosen)
        reached = measure(made)
    check(made)
    write_model(made, path)
    outcome.cosine |= reached
    outcome.in_float[name] = [layer for layer in layers if layer not in chosen]
    outcome.ranking += ranking


def _layer_ranges(
    model: onnx.ModelProto,
    graph: OnnxGraph,
    name: Graph,
    wanted: Quantisation,
    feeds: Sequence[Arrays],
) -> dict[str, Range]:
    """The range of each layer's input, calibrated now or by an earlier export."""
    inputs = quantised_inputs(graph)
    if wanted.scales is not None:
        return wanted.scales.ranges_for(name, inputs)
    found = ranges_of(model, list(dict.fromkeys(inputs.values())), feeds, wanted.calibration)
    return {layer: found[value] for layer, value in inputs.items()}


def _met(reached: Mapping[str, float], wanted: Quantisation) -> bool:
    # Written so that NaN never meets the target.
    return all(value >= wanted.target_cosine for value in reached.values())


def _unreachable(
    name: Graph, wanted: Quantisation, reached: Mapping[str, float], kept: int, layers: int
) -> str:
    worst = min(reached, key=lambda key: reached[key])
    return (
        f"the graph {name!r} cannot be INT8 with a cosine of {wanted.target_cosine:g}: {worst} "
        f"reaches {reached[worst]:.6f} with {kept} of its {layers} layers in float, and more would "
        "leave less than half of its weights in INT8"
    )


def describe_outcome(outcome: Outcome) -> dict[str, Any]:
    """Plain data for recomp.json, rounded, because the last digits differ between machines."""
    cosine = {name: round(value, 6) for name, value in outcome.cosine.items()}
    return {"cosine": cosine, "in_float": outcome.in_float}


def scales_of(outcome: Outcome, wanted: Quantisation) -> Scales:
    """The scales from which another export of the same model can start."""
    kept = {graph: tuple(layers) for graph, layers in outcome.in_float.items()}
    return Scales(wanted.kind, wanted.calibration, outcome.ranges, kept)


def print_ranking(console: Console, outcome: Outcome) -> None:
    """The cost of each layer by itself, one a line."""
    table = Table("graph", "layer", "1 − cosine", "", box=None)
    for row in outcome.ranking:
        state = "float" if row.layer in outcome.in_float[row.graph] else ""
        table.add_row(row.graph, row.layer, f"{1 - row.cosine:.1e}", state)
    console.print(table)


def write_ranking(path: Path, outcome: Outcome) -> None:
    """The same as JSON, with the cosines that were reached. Raises: ExportError when it cannot be
    written."""
    content = {**describe_outcome(outcome), "layers": [asdict(row) for row in outcome.ranking]}
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error
