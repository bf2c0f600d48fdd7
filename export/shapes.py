"""The graphs, and the shapes of all their inputs and outputs."""

from __future__ import annotations

from paddle_recomp.bundle.contract import ARRAYS, PIPELINE
from paddle_recomp.checkpoint import ModelSpec

Shape = list[int | str]

TRACED = PIPELINE
"""The graphs that are traced; `encoder` is made from them."""


def shapes_of(spec: ModelSpec) -> dict[str, Shape]:
    """Shape by name; `batch`, `tokens` and `words` are dynamic."""
    side, patches = spec.vision.image_size, spec.vision.num_patches
    width, joint = spec.vision.hidden_size, spec.vision.projection_dim
    return {
        "pixel_values": ["batch", 3, side, side],
        "question_ids": ["batch", spec.text.max_positions],
        "token_bounds": ["batch", 2],
        "features": ["batch", patches, width],
        "keys": ["batch", patches, width],
        "visual_score": ["batch", patches],
        "patch_embeds": ["batch", patches, joint],
        "layer_score": ["batch", patches],
        "text_embeds": ["batch", joint],
        "word_embeds": ["batch", "words", spec.language.hidden_size],
        "word_mask": ["batch", "words"],
        "visual_embeds": ["batch", "tokens", spec.projector.out_features],
        "token_count": ["batch"],
        "token_index": ["batch", "tokens"],
        "token_stage": ["batch", "tokens"],
        "token_owner": ["batch", patches],
        "token_centre": ["batch", "tokens"],
    }


def dtype_of(name: str) -> str:
    """The element type of an input or output."""
    return ARRAYS[name].dtype
