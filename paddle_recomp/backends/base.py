"""What every backend offers: named graphs that map named arrays to named arrays."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

from paddle_recomp.errors import FeatureError

Graph = Literal["vision", "text", "compress", "encoder"]
"""`encoder` is the other three in one, for a picture that is asked about once."""
PARTS: tuple[Graph, ...] = ("vision", "text", "compress")
"""The three, in the order in which data passes."""

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
    "encoder": ("pixel_values", "question_ids", "token_bounds"),
}
_TOKENS = (
    "visual_embeds",
    "token_count",
    "token_index",
    "token_stage",
    "token_owner",
    "token_centre",
)
OUTPUTS: dict[Graph, tuple[str, ...]] = {
    "vision": ("features", "keys", "visual_score", "patch_embeds"),
    "text": ("text_embeds",),
    "compress": _TOKENS,
    "encoder": _TOKENS,
}

CACHE_KINDS = ("key", "value")
PAST, PRESENT = "past_key_values.{layer}.{kind}", "present.{layer}.{kind}"
"""The KV cache of each layer in front of a decoder and behind it: one and the same memory."""


class Backend(Protocol):
    """Runs the graphs in front of the language model."""

    def run(self, graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays by the names in INPUTS -> arrays by the names in OUTPUTS."""
        ...


def run_parts(backend: Backend, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs of `encoder` -> these, and what each part gives on what stands before it."""
    arrays = dict(inputs)
    for graph in PARTS:
        arrays |= backend.run(graph, {name: arrays[name] for name in INPUTS[graph]})
    return arrays


def check_finite(arrays: dict[str, np.ndarray], suspect: str = "the weights") -> None:
    """Refuses what no comparison of scores could make sense of.

    Raises: FeatureError naming the array that holds NaN or infinity, and the suspect."""
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise FeatureError(f"{name} holds NaN or infinity; {suspect} are broken")
