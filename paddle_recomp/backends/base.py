"""What every backend offers: named graphs that map named arrays to named arrays."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

Graph = Literal["vision", "text", "compress"]

INPUTS: dict[Graph, tuple[str, ...]] = {
    "vision": ("pixel_values",),
    "text": ("question_ids",),
    "compress": (
        "features",
        "keys",
        "visual_score",
        "patch_embeds",
        "text_embeds",
        "token_bounds",
    ),
}
OUTPUTS: dict[Graph, tuple[str, ...]] = {
    "vision": ("features", "keys", "visual_score", "patch_embeds"),
    "text": ("text_embeds",),
    "compress": (
        "visual_embeds",
        "token_count",
        "token_index",
        "token_stage",
        "token_owner",
        "token_centre",
    ),
}


class Backend(Protocol):
    """Runs the graphs in front of the language model."""

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays by the names in INPUTS -> arrays by the names in OUTPUTS."""
        ...
