"""Eager Paddle: the graphs straight from the checkpoint, nothing exported."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle

from paddle_recomp.backends.base import check_finite
from paddle_recomp.backends.devices import place
from paddle_recomp.bundle.contract import OUTPUTS, Graph
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.config import CompressionConfig
from paddle_recomp.towers.visual_encoder import VisualEncoder
from paddle_recomp.towers.weights import load_part
from paddle_recomp.types import Compressed, Tensor, VisionFeatures

PARTS = ("vision_tower", "text_tower", "projector")


class EagerBackend:
    """Runs a checkpoint's towers, compressor and projector in eager Paddle, in float32."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: CompressionConfig,
        device: str = "cpu",
        on_tensor: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        """Raises: DeviceError, CheckpointError, ConfigError (unknown method)."""
        self.place = place(device)
        with paddle.device.device_guard(device):
            # Random numbers for parameters that are about to be loaded take longer than loading.
            with paddle.LazyGuard():
                self.encoder = VisualEncoder(checkpoint.spec, config)
            for part in PARTS:
                load_part(checkpoint, part, getattr(self.encoder, part), on_tensor=on_tensor)
        self.encoder.eval()

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Backend.run`.

        Raises: FeatureError when an image's or a question's features are not finite."""
        tensors = {
            name: paddle.to_tensor(value, place=self.place) for name, value in inputs.items()
        }
        with paddle.no_grad():
            outputs = getattr(self, f"_{graph}")(**tensors)
        arrays = dict(zip(OUTPUTS[graph], (x.numpy() for x in outputs), strict=True))
        check_finite(arrays)
        return arrays

    def _vision(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return self.encoder.vision_tower(pixel_values)

    def _text(self, question_ids: Tensor) -> tuple[Tensor, ...]:
        return (self.encoder.text_tower(question_ids),)

    def _compress(
        self, text_embeds: Tensor, token_bounds: Tensor, **vision: Tensor
    ) -> tuple[Tensor, ...]:
        return _flat(*self.encoder.compress(VisionFeatures(**vision), text_embeds, token_bounds))

    def _encoder(
        self, pixel_values: Tensor, question_ids: Tensor, token_bounds: Tensor
    ) -> tuple[Tensor, ...]:
        return _flat(*self.encoder(pixel_values, question_ids, token_bounds))


def _flat(visual_embeds: Tensor, kept: Compressed) -> tuple[Tensor, ...]:
    return (visual_embeds, kept.count, kept.index, kept.stage, kept.owner, kept.centre)
