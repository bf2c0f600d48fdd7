"""What a bundle stores, compared with its checkpoint to the last bit: the weights of its graphs, in
float and in INT8, and the numbers that its nodes have from the checkpoint's configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from paddle_recomp.backends.base import check_finite, run_encoder
from paddle_recomp.bundle import Bundle
from paddle_recomp.bundle.comparison import Comparison
from paddle_recomp.bundle.contract import Graph
from paddle_recomp.checkpoint import Checkpoint

from .decoder.stored import compare_decoder_files
from .errors import VerificationError
from .onnx_graph import OnnxGraph
from .restore import Restored, restore, weights_of
from .scales import Range, read_scales


def compare_stored(bundle: Bundle, checkpoint: Checkpoint) -> Iterator[Comparison]:
    """Every graph of a bundle, each file once.

    Raises: BundleError; CheckpointError for a weight that the checkpoint does not have."""
    seen = set[str]()
    for name in bundle.compressors:
        chosen = bundle.choose(name)
        for graph, about in chosen.graphs.items():
            if about.file in seen:
                continue
            seen.add(about.file)
            found = restored(chosen, checkpoint, graph)
            stage = graph if name == bundle.compressor else f"{graph} ({name})"
            yield from _rows(stage, found.equal, found.same_nodes)
            if epsilons := _epsilons(found.graph, checkpoint):
                yield _share(stage, "epsilon", epsilons)
    if bundle.decoder is not None:
        path = bundle.verified(bundle.decoder.file)
        equal, same = compare_decoder_files(checkpoint, path, bundle.decoder.precision)
        yield from _rows("decoder", equal, same)


def restored(bundle: Bundle, checkpoint: Checkpoint, graph: Graph) -> Restored:
    """A graph of a bundle in float, with the checkpoint's weights.

    Raises: BundleError; CheckpointError; VerificationError for static INT8 without its scales."""
    about = bundle.graphs[graph]
    bundle.verify_model(about.file, about.data)
    model = onnx.load(bundle.folder / about.file)
    stored = OnnxGraph.read(model, [info.name for info in model.graph.output])
    return restore(stored, weights_of(checkpoint), _ranges(bundle, stored))


def _ranges(bundle: Bundle, stored: OnnxGraph) -> Mapping[str, Range] | None:
    """The ranges of static INT8 by the layers' names."""
    if all(node.op_type != "QuantizeLinear" for node in stored.nodes):
        return None
    if bundle.scales is None:
        raise VerificationError(
            f"{bundle.folder} names no file of scales; expected one, as its INT8 is static"
        )
    scales = read_scales(bundle.verified(bundle.scales))
    return {layer: one for part in scales.ranges.values() for layer, one in part.items()}


def _rows(stage: str, equal: Mapping[str, bool], same_nodes: bool) -> Iterator[Comparison]:
    """One for all weights, and one for each that is another; one for the nodes."""
    if equal:
        yield _share(stage, "weights", list(equal.values()))
    yield from (_share(stage, name, [False]) for name, same in equal.items() if not same)
    yield _share(stage, "nodes", [same_nodes])


def _epsilons(graph: OnnxGraph, checkpoint: Checkpoint) -> list[bool]:
    """Whether each normalisation of a tower adds what the configuration says. A computation shows
    that only where a variance is as small."""
    spec = checkpoint.spec
    wanted = {"vision_tower": spec.vision.layer_norm_eps, "text_tower": spec.text.layer_norm_eps}
    found = []
    for node in graph.nodes:
        if node.op_type == "LayerNormalization":
            (epsilon,) = (item.f for item in node.attribute if item.name == "epsilon")
            expected = wanted.get(node.input[1].partition(".")[0])
            found.append(expected is not None and bool(epsilon == np.float32(expected)))
    return found


def _share(stage: str, name: str, equal: list[bool]) -> Comparison:
    return Comparison(1, stage, name, "agreement", sum(equal) / len(equal), 1.0)


class InFloat:
    """Runs the graphs of a bundle without their rounding, with its checkpoint's weights: what
    INT8 hides shows here."""

    def __init__(self, bundle: Bundle, checkpoint: Checkpoint) -> None:
        self.bundle, self.checkpoint = bundle, checkpoint
        self._sessions: dict[Graph, Any] = {}

    def inputs(self, graph: Graph) -> tuple[str, ...]:
        """See `Backend.inputs`."""
        return self.bundle.graphs[graph].inputs

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Backend.run`.

        Raises: FeatureError when an output is not finite; as `restored`."""
        if graph == "encoder" and graph not in self.bundle.graphs:
            return run_encoder(self, inputs)
        about = self.bundle.graphs[graph]
        if graph not in self._sessions:
            self._sessions[graph] = self._open(graph)
        wanted = {name: inputs[name] for name in about.inputs}
        values = self._sessions[graph].run(list(about.read), wanted)
        arrays = dict(zip(about.read, values, strict=True))
        check_finite(arrays)
        return arrays

    def _open(self, graph: Graph) -> Any:
        import onnxruntime

        model = restored(self.bundle, self.checkpoint, graph).graph.model()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
