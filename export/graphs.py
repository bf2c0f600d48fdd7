"""The graphs of a bundle as Paddle layers with the shapes they are traced with.

They only wrap: the towers, the methods and the projector are the library's own. B images, L text
positions, N patches; a None in a shape is dynamic."""

from __future__ import annotations

import paddle
from paddle import nn
from paddle.static import InputSpec

from paddle_recomp.bundle.contract import INPUTS, Graph
from paddle_recomp.checkpoint import Checkpoint, ModelSpec
from paddle_recomp.compression.registry import get_method
from paddle_recomp.config import CompressionConfig
from paddle_recomp.towers.clip import TextTower, VisionTower
from paddle_recomp.towers.visual_encoder import PROJECTORS, VisualEncoder
from paddle_recomp.towers.weights import load_part
from paddle_recomp.types import Tensor, VisionFeatures

from .shapes import dtype_of, shapes_of


class VisionGraph(nn.Layer):
    """pixel_values [B, 3, S, S] -> the four of `VisionFeatures`."""

    def __init__(self, spec: ModelSpec, config: CompressionConfig) -> None:
        super().__init__()
        self.vision_tower = VisionTower(spec.vision, spec.vision_feature_layer, config)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """A plain tuple, in the order of OUTPUTS."""
        return tuple(self.vision_tower(pixel_values))


class TextGraph(nn.Layer):
    """question_ids [B, L] -> text_embeds [B, P]."""

    def __init__(self, spec: ModelSpec, config: CompressionConfig) -> None:
        super().__init__()
        self.text_tower = TextTower(spec.text, config)

    def forward(self, question_ids: Tensor) -> tuple[Tensor, ...]:
        """A plain tuple, in the order of OUTPUTS."""
        return (self.text_tower(question_ids),)


class CompressGraph(nn.Layer):
    """The outputs of both towers and token_bounds [B, 2] -> visual_embeds and provenance."""

    def __init__(self, spec: ModelSpec, config: CompressionConfig) -> None:
        super().__init__()
        self.method, self.config = get_method(config.method), config
        self.projector = PROJECTORS[spec.projector.kind](spec.projector)

    def forward(
        self,
        features: Tensor,
        keys: Tensor,
        visual_score: Tensor,
        patch_embeds: Tensor,
        text_embeds: Tensor,
        token_bounds: Tensor,
    ) -> tuple[Tensor, ...]:
        """A plain tuple, in the order of OUTPUTS, and then the inputs: Paddle refuses to save a
        graph that leaves one of its inputs unused, as some methods do."""
        vision = VisionFeatures(features, keys, visual_score, patch_embeds)
        kept = self.method(vision, text_embeds, token_bounds, self.config)
        embeds = self.projector(kept.tokens)
        outputs = (embeds, kept.count, kept.index, kept.stage, kept.owner, kept.centre)
        return outputs + tuple(paddle.assign(x) for x in (*vision, text_embeds, token_bounds))


class EncoderGraph(VisualEncoder):
    """The other three in one, for Paddle Inference; ONNX's is joined from their files."""

    def forward(
        self, pixel_values: Tensor, question_ids: Tensor, token_bounds: Tensor
    ) -> tuple[Tensor, ...]:
        """A plain tuple: see `CompressGraph.forward`.

        Step by step, because the tracer does not look into a call of the base class's forward, and
        what it does not look into loses the dynamic shapes."""
        vision = self.vision_tower(pixel_values)
        text_embeds = self.text_tower(question_ids)
        embeds, kept = self.compress(vision, text_embeds, token_bounds)
        outputs = (embeds, kept.count, kept.index, kept.stage, kept.owner, kept.centre)
        inputs = (pixel_values, question_ids, token_bounds)
        return outputs + tuple(paddle.assign(x) for x in inputs)


LAYERS: dict[Graph, tuple[type[nn.Layer], tuple[str, ...]]] = {
    "vision": (VisionGraph, ("vision_tower",)),
    "text": (TextGraph, ("text_tower",)),
    "compress": (CompressGraph, ("projector",)),
    "encoder": (EncoderGraph, ("vision_tower", "text_tower", "projector")),
}
"""Each graph with the parts of the checkpoint that it holds."""


def build(graph: Graph, checkpoint: Checkpoint, config: CompressionConfig) -> nn.Layer:
    """The layer of a graph with its weights. Raises: ConfigError, CheckpointError."""
    kind, parts = LAYERS[graph]
    layer = kind(checkpoint.spec, config)
    for part in parts:
        load_part(checkpoint, part, getattr(layer, part))
    layer.eval()
    return layer


def input_specs(graph: Graph, spec: ModelSpec) -> list[InputSpec]:
    """What a graph is traced with; the batch is dynamic."""
    shapes = shapes_of(spec)
    return [InputSpec([None, *shapes[name][1:]], dtype_of(name), name) for name in INPUTS[graph]]
