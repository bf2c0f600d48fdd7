"""The names that a bundle's graphs are called by: what each takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Graph = Literal["vision", "text", "compress", "encoder"]
"""`encoder` is the other three in one, for a picture that is asked about once."""
PIPELINE: tuple[Graph, ...] = ("vision", "text", "compress")
"""The three graphs in the order in which data passes through them."""

VISION_OUTPUTS = ("features", "keys", "visual_score", "patch_embeds", "layer_score")
"""Everything that a vision graph may give; it gives what its compress graphs take."""
TOKENS = (
    "visual_embeds",
    "token_count",
    "token_index",
    "token_stage",
    "token_owner",
    "token_centre",
)
"""The outputs of every compress graph."""


@dataclass(frozen=True)
class Signature:
    """The names of a graph's inputs and outputs, in their order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def signatures(compress_inputs: Sequence[str]) -> dict[Graph, Signature]:
    """The graphs around a compress graph that takes these inputs."""
    vision = tuple(name for name in VISION_OUTPUTS if name in compress_inputs)
    question = tuple(
        graph_input
        for name, graph_input in (
            ("text_embeds", "question_ids"),
            ("word_embeds", "word_embeds"),
            ("word_mask", "word_mask"),
        )
        if name in compress_inputs
    )
    return {
        "vision": Signature(("pixel_values",), vision),
        "text": Signature(("question_ids",), ("text_embeds",)),
        "compress": Signature(tuple(compress_inputs), TOKENS),
        "encoder": Signature(("pixel_values", *question, "token_bounds"), TOKENS),
    }


_USUAL = signatures(
    ("features", "keys", "visual_score", "patch_embeds", "text_embeds", "token_bounds")
)
INPUTS: dict[Graph, tuple[str, ...]] = {graph: one.inputs for graph, one in _USUAL.items()}
OUTPUTS: dict[Graph, tuple[str, ...]] = {graph: one.outputs for graph, one in _USUAL.items()}

CACHE_KINDS = ("key", "value")
PAST, PRESENT = "past_key_values.{layer}.{kind}", "present.{layer}.{kind}"
"""The KV cache of each layer in front of a decoder and behind it: one and the same memory."""
