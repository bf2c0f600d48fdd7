"""A method that reads every input of the closed list, so that each is proven on its whole way."""

from __future__ import annotations

import paddle

from paddle_recomp.compression import ops
from paddle_recomp.compression.assemble import assemble
from paddle_recomp.compression.filter import FilterOptions, dynamic_count
from paddle_recomp.compression.method import INPUTS, Method, MethodInputs
from paddle_recomp.types import Compressed, StageInfo, Tensor


def everything(inputs: MethodInputs, bounds: Tensor, options: FilterOptions) -> Compressed:
    """Keeps the patches with the highest sum of a number from each input."""
    assert inputs.grid is not None
    patches, words = inputs.projected_patches, inputs.word_embeds
    likeness = paddle.matmul(patches, words, transpose_y=True)
    real = inputs.word_mask.astype(likeness.dtype).unsqueeze(1)
    columns = paddle.arange(inputs.grid[0] * inputs.grid[1], dtype="int64") % inputs.grid[1]
    score = (
        inputs.visual_score
        + inputs.layer_score
        + ops.cosine_scores(inputs.text_embeds, inputs.patch_embeds)
        + ops.length(inputs.keys)
        + (likeness * real).sum(axis=-1)
        + columns.astype(likeness.dtype) * 0.01
    )
    count = dynamic_count(inputs.visual_score, bounds, options)
    kept = ops.top(score, count)
    return assemble(inputs.features, kept, 0)


EVERYTHING = Method(
    name="everything",
    summary="Reads all there is.",
    source="this test",
    compress=everything,
    options=FilterOptions,
    inputs=tuple(INPUTS),
    stages=(StageInfo("kept", "patch", "have the highest sum"),),
)
