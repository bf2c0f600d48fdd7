"""The graphs, and the shapes of everything that goes into them or comes out."""

from __future__ import annotations

from paddle_recomp.bundle.contract import PIPELINE
from paddle_recomp.checkpoint import ModelSpec

Shape = list[int | str]

TRACED = PIPELINE
"""The graphs that are traced; `encoder` is made of them."""

DTYPES = {
    "question_ids": "int64",
    "token_bounds": "int64",
    "token_count": "int64",
    "token_index": "int64",
    "token_stage": "int64",
    "token_owner": "int64",
    "token_centre": "int64",
}
"""Those that are not float32."""


def shapes_of(spec: ModelSpec) -> dict[str, Shape]:
    """Shape by name; `batch` and `tokens` are dynamic."""
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
        "text_embeds": ["batch", joint],
        "visual_embeds": ["batch", "tokens", spec.projector.out_features],
        "token_count": ["batch"],
        "token_index": ["batch", "tokens"],
        "token_stage": ["batch", "tokens"],
        "token_owner": ["batch", patches],
        "token_centre": ["batch", "tokens"],
    }


def dtype_of(name: str) -> str:
    """The element type of an input or output."""
    return DTYPES.get(name, "float32")
