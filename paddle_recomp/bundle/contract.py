"""The names that a bundle's graphs are called by: what each takes and gives. The list is closed: a
reader refuses a graph that takes anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Graph = Literal["vision", "text", "compress", "encoder"]
"""`encoder` is the other three in one, for a picture that is asked about once."""
PIPELINE: tuple[Graph, ...] = ("vision", "text", "compress")
"""The three graphs in the order in which data passes through them."""


class Array(NamedTuple):
    """An input or output of a graph."""

    dtype: Literal["float32", "int64", "bool"]
    shape: tuple[str, ...]
    """B pictures, S pixels of a side, L positions of a question, N patches, C vision width,
    P joint width, M tokens, D language-model width, W words of a question."""
    meaning: str


ARRAYS: dict[str, Array] = {
    "pixel_values": Array("float32", ("B", "3", "S", "S"), "the prepared pictures"),
    "question_ids": Array("int64", ("B", "L"), "the question of each picture in CLIP's tokens"),
    "features": Array("float32", ("B", "N", "C"), "each patch as the projector reads it"),
    "keys": Array("float32", ("B", "N", "C"), "each patch's keys in the tower's last layer"),
    "visual_score": Array("float32", ("B", "N"), "the class token's attention to each patch"),
    "patch_embeds": Array("float32", ("B", "N", "P"), "each patch in the space of CLIP's texts"),
    "layer_score": Array("float32", ("B", "N"), "`visual_score` of another layer of the tower"),
    "text_embeds": Array("float32", ("B", "P"), "the question in the space of CLIP's texts"),
    "word_embeds": Array(
        "float32", ("B", "W", "D"), "the question's words, embedded by the language model"
    ),
    "word_mask": Array("bool", ("B", "W"), "which of the W are words"),
    "token_bounds": Array("int64", ("B", "2"), "the least and most tokens of each picture"),
    "visual_embeds": Array(
        "float32", ("B", "M", "D"), "the tokens for the language model; zeros behind the last"
    ),
    "token_count": Array("int64", ("B",), "how many of the M tokens are real"),
    "token_index": Array("int64", ("B", "M"), "the patch that a token is; −1: not one patch"),
    "token_stage": Array(
        "int64", ("B", "M"), "the stage that chose the token, as its place in `stages`; −1: padding"
    ),
    "token_owner": Array("int64", ("B", "N"), "the token that each patch went into; −1: none"),
    "token_centre": Array("int64", ("B", "M"), "the patch a merged token stands around; else −1"),
}
"""Everything that goes into a graph or comes out of one."""

VISION_OUTPUTS = ("features", "keys", "visual_score", "patch_embeds", "layer_score")
"""Everything that a vision graph may give; it gives what its compress graphs take."""
SCORES = ("visual_score", "layer_score")
"""Those of them that are one number for a patch, by which compressors choose."""
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

FROM_THE_LANGUAGE_MODEL = ("word_embeds", "word_mask")
"""Inputs that no graph gives: they are the question's ids, embedded by the language model."""
KNOWN_INPUTS: dict[Graph, frozenset[str]] = {
    "vision": frozenset(INPUTS["vision"]),
    "text": frozenset(INPUTS["text"]),
    "compress": frozenset(
        {*VISION_OUTPUTS, "text_embeds", *FROM_THE_LANGUAGE_MODEL, "token_bounds"}
    ),
    "encoder": frozenset({*INPUTS["encoder"], *FROM_THE_LANGUAGE_MODEL}),
}
"""Everything that a graph of a bundle may take. The first two take all of theirs."""
KNOWN_OUTPUTS: dict[Graph, frozenset[str]] = {
    "vision": frozenset(VISION_OUTPUTS),
    "text": frozenset(OUTPUTS["text"]),
    "compress": frozenset(TOKENS),
    "encoder": frozenset(TOKENS),
}
"""Everything of a graph that is read. What else it gives is not asked for."""

CACHE_KINDS = ("key", "value")
PAST, PRESENT = "past_key_values.{layer}.{kind}", "present.{layer}.{kind}"
"""The KV cache of each layer in front of a decoder and behind it: one and the same memory."""
