"""The graphs of a bundle as Paddle layers, with the shapes for tracing them.

They only wrap: the towers, the methods and the projector are the library's own. A graph takes its
inputs as one dictionary, because each method has inputs of its own. B images, L text positions, N
patches; a None in a shape is dynamic."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import nn
from paddle.static import InputSpec

from paddle_recomp.bundle.contract import Graph, Signature, signatures
from paddle_recomp.checkpoint import Checkpoint, ModelSpec
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.compression.registry import get_method
from paddle_recomp.towers.clip import TextTower, VisionTower
from paddle_recomp.towers.visual_encoder import Compressor, VisualEncoder
from paddle_recomp.towers.weights import load_part
from paddle_recomp.types import Compressed, Tensor

from .shapes import dtype_of, shapes_of

Inputs = dict[str, Tensor]


class VisionGraph(nn.Layer):
    """pixel_values [B, 3, S, S] -> the fields of `VisionFeatures` that are read."""

    def __init__(self, spec: ModelSpec, config: CompressionConfig) -> None:
        super().__init__()
        self.vision_tower = VisionTower(spec.vision, spec.vision_feature_layer, config.towers)
        self.signature = signature_of("vision", config)

    def forward(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """A plain tuple, in the order of the graph's signature."""
        vision = self.vision_tower(inputs["pixel_values"])._asdict()
        return tuple(vision[name] for name in self.signature.outputs)


class TextGraph(nn.Layer):
    """question_ids [B, L] -> text_embeds [B, P]."""

    def __init__(self, spec: ModelSpec, config: CompressionConfig) -> None:
        super().__init__()
        self.text_tower = TextTower(spec.text, config.towers)
        self.signature = signature_of("text", config)

    def forward(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """A plain tuple."""
        return (self.text_tower(inputs["question_ids"]),)


class CompressGraph(Compressor):
    """The method's inputs and token_bounds [B, 2] -> visual_embeds and provenance."""

    def __init__(self, spec: ModelSpec, config: CompressionConfig) -> None:
        super().__init__(spec, config)
        self.signature = signature_of("compress", config)

    def forward(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """A plain tuple, in the order of TOKENS, and then the inputs: Paddle refuses to save a
        graph that leaves one of its inputs unused."""
        embeds, kept = self.compress(inputs["token_bounds"], inputs)
        return flat(embeds, kept) + _echo(inputs)


class EncoderGraph(nn.Layer):
    """The other three in one, for Paddle Inference. For ONNX it is joined from their files."""

    def __init__(self, spec: ModelSpec, config: CompressionConfig) -> None:
        super().__init__()
        whole = VisualEncoder(spec, config)
        self.vision_tower, self.text_tower = whole.vision_tower, whole.text_tower
        self.compressor = whole.compressor
        self.signature = signature_of("encoder", config)

    @property
    def projector(self) -> nn.Layer:
        """The projector, which stands behind the method."""
        return self.compressor.projector

    def forward(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """A plain tuple: see `CompressGraph.forward`."""
        given = dict(inputs)
        given.update(self.vision_tower(inputs["pixel_values"])._asdict())
        if "question_ids" in inputs:
            given["text_embeds"] = self.text_tower(inputs["question_ids"])
        embeds, kept = self.compressor.compress(inputs["token_bounds"], given)
        return flat(embeds, kept) + _echo(inputs)


def flat(visual_embeds: Tensor, kept: Compressed) -> tuple[Tensor, ...]:
    """The outputs of a compress graph in the order of TOKENS."""
    return (visual_embeds, kept.count, kept.index, kept.stage, kept.owner, kept.centre)


def _echo(inputs: Inputs) -> tuple[Tensor, ...]:
    return tuple(paddle.assign(value) for value in inputs.values())


LAYERS: dict[Graph, tuple[type[nn.Layer], tuple[str, ...]]] = {
    "vision": (VisionGraph, ("vision_tower",)),
    "text": (TextGraph, ("text_tower",)),
    "compress": (CompressGraph, ("projector",)),
    "encoder": (EncoderGraph, ("vision_tower", "text_tower", "projector")),
}
"""Each graph with the parts of the checkpoint that it holds."""


def signature_of(graph: Graph, config: CompressionConfig) -> Signature:
    """The inputs and outputs of a graph, for the method of this configuration."""
    return signatures(get_method(config.method).graph_inputs)[graph]


def build(
    graph: Graph, checkpoint: Checkpoint, config: CompressionConfig, reads: Sequence[str] = ()
) -> nn.Layer:
    """The layer of a graph with its weights, which knows its `signature`. A vision graph also has
    outputs for other compress graphs: `reads` names them.

    Raises: ConfigError, CheckpointError."""
    kind, parts = LAYERS[graph]
    layer = kind(checkpoint.spec, config)
    if graph == "vision":
        taken = {*reads, *get_method(config.method).graph_inputs}
        layer.signature = signatures(tuple(taken))["vision"]
    for part in parts:
        load_part(checkpoint, part, getattr(layer, part))
    layer.eval()
    return layer


def input_specs(signature: Signature, spec: ModelSpec) -> dict[str, InputSpec]:
    """The shapes for tracing a graph, by name; the batch is dynamic, and so is the number of
    words."""
    shapes = shapes_of(spec)
    return {
        name: InputSpec(
            [side if isinstance(side, int) else None for side in shapes[name]], dtype_of(name), name
        )
        for name in signature.inputs
    }
