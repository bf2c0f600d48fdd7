"""Eager Paddle: the graphs straight from the checkpoint, nothing exported."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle

from paddle_recomp.backends.base import check_finite
from paddle_recomp.backends.devices import place
from paddle_recomp.bundle.contract import TOKENS, Graph, signatures
from paddle_recomp.checkpoint import Checkpoint
from paddle_recomp.compression.config import CompressionConfig
from paddle_recomp.towers.visual_encoder import VisualEncoder
from paddle_recomp.towers.weights import load_part
from paddle_recomp.types import Compressed, Tensor

_PARTS = ("vision_tower", "text_tower", "projector")


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
            # Drawing random parameters would take longer than loading those that replace them.
            with paddle.LazyGuard():
                self.visual_encoder = VisualEncoder(checkpoint.spec, config)
            for part in _PARTS:
                load_part(checkpoint, part, getattr(self.visual_encoder, part), on_tensor=on_tensor)
        self.visual_encoder.eval()
        method = self.visual_encoder.compressor.method
        self.signatures = signatures(method.graph_inputs)
        self.stages = method.stages

    def inputs(self, graph: Graph) -> tuple[str, ...]:
        """See `Backend.inputs`."""
        return self.signatures[graph].inputs

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Backend.run`.

        Raises: FeatureError when an image's or a question's features are not finite."""
        signature = self.signatures[graph]
        tensors = {
            name: paddle.to_tensor(inputs[name], place=self.place) for name in signature.inputs
        }
        with paddle.no_grad():
            outputs = getattr(self, f"_{graph}")(**tensors)
        arrays = {name: outputs[name].numpy() for name in signature.outputs}
        check_finite(arrays)
        return arrays

    def _vision(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return self.visual_encoder.vision_tower(pixel_values)._asdict()

    def _text(self, question_ids: Tensor) -> dict[str, Tensor]:
        return {"text_embeds": self.visual_encoder.text_tower(question_ids)}

    def _compress(self, token_bounds: Tensor, **given: Tensor) -> dict[str, Tensor]:
        return _named(*self.visual_encoder.compressor.compress(token_bounds, given))

    def _encoder(
        self, pixel_values: Tensor, question_ids: Tensor = None, **given: Tensor
    ) -> dict[str, Tensor]:
        given |= self._vision(pixel_values)
        given |= {} if question_ids is None else self._text(question_ids)
        return self._compress(**given)


def _named(visual_embeds: Tensor, kept: Compressed) -> dict[str, Tensor]:
    provenance = (kept.count, kept.index, kept.stage, kept.owner, kept.centre)
    return dict(zip(TOKENS, (visual_embeds, *provenance), strict=True))
