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
from paddle_recomp.bundle.contract import SCORES, Graph

from .calibration import Arrays, Quantisation, Samples, outputs_of, ranges_of
from .choices import Chooser
from .errors import ExportError
from .onnx_graph import OnnxGraph
from .optimise import check
from .quantise import layer_of, quantise, quantised_inputs, weight_nodes
from .restore import check_rounding
from .scales import Range, Scales
from .writing import write_model

TOWERS: tuple[Graph, ...] = ("vision", "text")
GUARDED = ("features", "keys", "patch_embeds", "text_embeds", *SCORES)
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
    overlap: float = 1.0
    """The mean overlap of the patches kept, behind both towers."""
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
    outputs: dict[str, Sequence[Arrays]] = {
        name: outputs_of(onnx.load(folder / f"{name}.onnx"), name, samples.feeds[name])
        for name in TOWERS
    }
    chooser = Chooser(folder / "compress.onnx", samples, outputs)
    for name in TOWERS:
        # The second tower is measured behind the first one in INT8, as they will run.
        outputs[name] = _quantise_tower(
            folder / f"{name}.onnx", name, wanted, samples, ranked, outcome, outputs, chooser
        )
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
    outputs: Mapping[str, Sequence[Arrays]],
    chooser: Chooser,
) -> list[Arrays]:
    """Gives what the tower in INT8 makes of the samples; `outputs` holds what both towers make of
    them so far."""
    model, feeds, expected = onnx.load(path), samples.feeds[name], outputs[name]
    metadata = {item.key: item.value for item in model.metadata_props}
    graph = OnnxGraph.read(model, [info.name for info in model.graph.output])
    layers: dict[str, list[str]] = {}
    for weight in weight_nodes(graph):
        layers.setdefault(layer_of(weight), []).append(weight)
    ranges = None
    if wanted.kind == "static":
        outcome.ranges[name] = _layer_ranges(model, graph, name, wanted, feeds)
        inputs = quantised_inputs(graph)
        ranges = {inputs[layer]: limits for layer, limits in outcome.ranges[name].items()}
    del model

    def attempt(chosen: Iterable[str]) -> onnx.ModelProto:
        weights = [weight for layer in chosen for weight in layers[layer]]
        return quantise(graph, weights, ranges).model(metadata)

    def measure(found: Sequence[Arrays]) -> dict[str, float]:
        kept = {"overlap": chooser.overlap({**outputs, name: found})}
        return cosines(expected, found) | kept

    in_float = set() if wanted.scales is None else wanted.scales.float_layers(name, layers)
    chosen = [layer for layer in layers if layer not in in_float]
    made = attempt(chosen)
    reached = measure(found := outputs_of(made, name, feeds))
    ranking: list[Sensitivity] = []
    if ranked or _missed(reached, wanted):
        few = feeds[:_RANKED_ON]
        for layer in layers:
            alone = cosines(expected[:_RANKED_ON], outputs_of(attempt([layer]), name, few))
            ranking.append(Sensitivity(name, layer, min(alone.values())))
        ranking.sort(key=lambda row: row.cosine)

    size = {layer: sum(graph.constants[w].size for w in layers[layer]) for layer in layers}
    left = [row.layer for row in ranking if row.layer in chosen]
    while _missed(reached, wanted):
        tried = [layer for layer in chosen if layer != left[0]]
        if sum(size[layer] for layer in tried) < (1 - _MOST_IN_FLOAT) * sum(size.values()):
            kept = len(layers) - len(chosen)
            raise ExportError(_unreachable(name, wanted, reached, kept, len(layers)))
        chosen, left = tried, left[1:]
        made = attempt(chosen)
        reached = measure(found := outputs_of(made, name, feeds))
    stored = OnnxGraph.read(made, [info.name for info in made.graph.output])
    check_rounding(stored, graph, outcome.ranges.get(name))
    check(made)
    write_model(made, path)
    outcome.overlap = reached.pop("overlap")
    outcome.cosine |= reached
    outcome.in_float[name] = [layer for layer in layers if layer not in chosen]
    outcome.ranking += ranking
    return found


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


def _missed(reached: Mapping[str, float], wanted: Quantisation) -> dict[str, float]:
    """By how much each measure misses its target; NaN always does."""
    targets = dict.fromkeys(reached, wanted.target_cosine) | {"overlap": wanted.target_overlap}
    return {
        key: targets[key] - value for key, value in reached.items() if not value >= targets[key]
    }


def _unreachable(
    name: Graph, wanted: Quantisation, reached: Mapping[str, float], kept: int, layers: int
) -> str:
    missed = _missed(reached, wanted)
    worst = max(missed, key=lambda key: missed[key])
    kind, target = "a cosine", wanted.target_cosine
    if worst == "overlap":
        kind, target = "an overlap of the patches kept", wanted.target_overlap
    return (
        f"the graph {name!r} cannot be INT8 with {kind} of {target:g}: {worst} "
        f"reaches {reached[worst]:.6f} with {kept} of its {layers} layers in float, and more would "
        "leave less than half of its weights in INT8"
    )


def describe_outcome(outcome: Outcome) -> dict[str, Any]:
    """Plain data for recomp.json, rounded, because the last digits differ between machines."""
    cosine = {name: round(value, 6) for name, value in outcome.cosine.items()}
    return {"cosine": cosine, "overlap": round(outcome.overlap, 4), "in_float": outcome.in_float}


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
