"""The names that a bundle's graphs are called by: what each takes and gives."""

from __future__ import annotations

from typing import Literal

Graph = Literal["vision", "text", "compress", "encoder"]
"""`encoder` is the other three in one, for a picture that is asked about once."""
PIPELINE: tuple[Graph, ...] = ("vision", "text", "compress")
"""The three graphs in the order in which data passes through them."""

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
