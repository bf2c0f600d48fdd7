"""The whole graph in front of the language model: towers, compressor, projector."""

from __future__ import annotations

from paddle import nn

from paddle_recomp.checkpoint import ModelSpec
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.compression.method import Method, MethodInputs
from paddle_recomp.compression.registry import get_method
from paddle_recomp.errors import ConfigError
from paddle_recomp.towers.clip import TextTower, VisionTower
from paddle_recomp.towers.projector import make_projector
from paddle_recomp.types import Compressed, Tensor


class Compressor(nn.Layer):
    """A compression method with the projector behind it."""

    def __init__(self, spec: ModelSpec, config: CompressionConfig) -> None:
        """Raises: ConfigError for a method that does not act after the vision tower."""
        super().__init__()
        self.method, self.config = method_after_the_tower(config.method), config
        self.projector = make_projector(spec.projector)
        side = spec.vision.image_size // spec.vision.patch_size
        self.grid = (side, side)

    def compress(self, bounds: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, Compressed]:
        """bounds [B, 2] int64 and the method's inputs by name, as `MethodInputs` has them; others
        are ignored -> visual_embeds [B, M, D], provenance."""
        reads = self.method.inputs
        inputs = {name: given[name] for name in self.method.graph_inputs if name != "token_bounds"}
        if "projected_patches" in reads:
            inputs["projected_patches"] = self.projector(given["features"])
        grid = self.grid if "grid" in reads else None
        kept = self.method.compress(MethodInputs(**inputs, grid=grid), bounds, self.config.options)
        return self.projector(kept.tokens), kept


class VisualEncoder(nn.Layer):
    """From pixels and a question to the visual tokens that the question needs.

    Each step is a graph of its own, so that an image is seen once and compressed again for every
    new question; `forward` is all of them in one."""

    def __init__(self, spec: ModelSpec, config: CompressionConfig | None = None) -> None:
        super().__init__()
        self.config = config or CompressionConfig()
        towers = self.config.towers
        self.vision_tower = VisionTower(spec.vision, spec.vision_feature_layer, towers)
        self.text_tower = TextTower(spec.text, towers)
        self.compressor = Compressor(spec, self.config)

    @property
    def projector(self) -> nn.Layer:
        """The projector, which stands behind the method."""
        return self.compressor.projector

    def forward(
        self, pixel_values: Tensor, question_ids: Tensor, bounds: Tensor
    ) -> tuple[Tensor, Compressed]:
        """pixel_values [B, 3, S, S], question_ids [B, L] -> visual_embeds [B, M, D], provenance."""
        vision = self.vision_tower(pixel_values)
        text_embeds = self.text_tower(question_ids)
        return self.compressor.compress(bounds, {**vision._asdict(), "text_embeds": text_embeds})


def method_after_the_tower(name: str) -> Method:
    """The method of that name, if it acts after the vision tower.

    Raises: ConfigError for an unknown method, or one that acts elsewhere."""
    method = get_method(name)
    if method.acts != "after_tower":
        raise ConfigError(
            f"method {name!r} acts {method.acts.replace('_', ' ')}; this version runs methods that "
            "act after the vision tower"
        )
    return method
