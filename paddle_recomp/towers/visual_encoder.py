"""The whole graph in front of the language model: towers, compressor, projector."""

from __future__ import annotations

import paddle.nn.functional as F  # noqa: N812
from paddle import nn

from paddle_recomp.checkpoint import ModelSpec, ProjectorSpec
from paddle_recomp.compression.registry import get_method
from paddle_recomp.config import CompressionConfig
from paddle_recomp.towers.clip import TextTower, VisionTower
from paddle_recomp.types import Compressed, Tensor, VisionFeatures


class Mlp2xGelu(nn.Layer):
    """LLaVA-1.5's projector."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__()
        bias = None if spec.bias else False
        self.linear_1 = nn.Linear(spec.in_features, spec.out_features, bias_attr=bias)
        self.linear_2 = nn.Linear(spec.out_features, spec.out_features, bias_attr=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, M, C] -> [B, M, D]."""
        return self.linear_2(F.gelu(self.linear_1(x)))


class LinearProjector(nn.Layer):
    """LLaVA-1.0's projector."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__()
        bias = None if spec.bias else False
        self.linear = nn.Linear(spec.in_features, spec.out_features, bias_attr=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, M, C] -> [B, M, D]."""
        return self.linear(x)


PROJECTORS: dict[str, type[nn.Layer]] = {"mlp2x_gelu": Mlp2xGelu, "linear": LinearProjector}


class VisualEncoder(nn.Layer):
    """From pixels and a question to the visual tokens that the question needs.

    Each step is a graph of its own, so that an image is seen once and compressed again for every
    new question; `forward` is all of them in one."""

    def __init__(self, spec: ModelSpec, config: CompressionConfig | None = None) -> None:
        super().__init__()
        self.config = config or CompressionConfig()
        self.method = get_method(self.config.method)
        self.vision_tower = VisionTower(spec.vision, spec.vision_feature_layer, self.config)
        self.text_tower = TextTower(spec.text, self.config)
        self.projector = PROJECTORS[spec.projector.kind](spec.projector)

    def compress(
        self, vision: VisionFeatures, text_embeds: Tensor, bounds: Tensor
    ) -> tuple[Tensor, Compressed]:
        """text_embeds [B, P], bounds [B, 2] int64 -> visual_embeds [B, M, D], provenance."""
        kept = self.method(vision, text_embeds, bounds, self.config)
        return self.projector(kept.tokens), kept

    def forward(
        self, pixel_values: Tensor, question_ids: Tensor, bounds: Tensor
    ) -> tuple[Tensor, Compressed]:
        """pixel_values [B, 3, S, S], question_ids [B, L] -> visual_embeds [B, M, D], provenance."""
        vision = self.vision_tower(pixel_values)
        text_embeds = self.text_tower(question_ids)
        return self.compress(vision, text_embeds, bounds)
