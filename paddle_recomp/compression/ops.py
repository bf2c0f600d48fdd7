"""The tensor operations of the compressor, in Paddle: batched, no branch on data, exportable.

B images, N patches, C width, K centres. Counts are int64 [B], so that every image of a batch may
keep a different number of tokens. The exporter aborts on `masked_fill`, `searchsorted`, `median`
and `1 / x`, hence `where`, sorts and `reciprocal` in their place.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from paddle_recomp.compression import lazy_paddle as paddle
from paddle_recomp.types import Tensor

_FAR = 1e30
"""No score is as large. Yet float32 has it, in which the exporter writes Python's numbers."""


def class_attention(
    q_cls: Tensor, keys: Tensor, num_heads: int, mode: Literal["concat", "heads"]
) -> Tensor:
    """Attention of the class token to each patch: the visual score.

    `concat` treats the concatenated heads as one (paper eq. 1 and public code), `heads` is the
    tower's own attention, mean over heads.

    Shapes: q_cls [B, C], keys [B, 1 + N, C] with the class token first -> [B, N]."""
    heads = 1 if mode == "concat" else num_heads
    width = q_cls.shape[-1] // heads
    query = q_cls.reshape([-1, heads, 1, width])
    logits = paddle.matmul(query, keys.reshape([0, 0, heads, width]).transpose([0, 2, 3, 1]))
    attention = paddle.nn.functional.softmax(logits * width**-0.5, axis=-1)
    # Not a mean: Paddle Inference prints a line for its kernel on standard output.
    return attention[:, :, 0, 1:].sum(axis=1) / heads


def cosine_scores(text_embeds: Tensor, patch_embeds: Tensor) -> Tensor:
    """Text score of each patch: cos(text, patch) / sqrt(P) (public code).

    Shapes: text_embeds [B, P], patch_embeds [B, N, P] -> [B, N]."""
    text = paddle.nn.functional.normalize(text_embeds, axis=-1).unsqueeze(-1)
    similarity = paddle.matmul(patch_embeds, text).squeeze(-1) / length(patch_embeds)
    return similarity * patch_embeds.shape[-1] ** -0.5


def length(x: Tensor) -> Tensor:
    """Euclidean length of vectors, at least 1e-12 as in `F.normalize`: x [B, N, C] -> [B, N].

    Cosines divide a product of two vectors by their lengths: that takes C times fewer divisions
    than making each vector one long before the product."""
    # A dot product needs no array for the squares; where x is large, Paddle takes longer to make
    # room for one than to add it up.
    rows = x.reshape([-1, x.shape[-1]])
    return paddle.dot(rows, rows).reshape([-1, x.shape[1]]).sqrt().clip(min=1e-12)


def outlier_count(
    scores: Tensor,
    mask: Tensor,
    neighbours: int,
    threshold: float,
    side: Literal["above_median", "all"],
) -> Tensor:
    """How many of the masked scores have a local outlier factor above the threshold.

    Equals scikit-learn's `LocalOutlierFactor` on the masked scores as one column. In one
    dimension the k nearest neighbours follow one another in sorted order, so a sort and the k
    places on either side replace the search; of two values at the same distance, the higher is the
    nearer. In float64, as scikit-learn computes.

    Shapes: scores [B, N] float, mask [B, N] bool -> [B] int64."""
    size = scores.shape[1]
    if size < 2:
        return mask.astype("int64").sum(axis=1) * 0
    k = min(neighbours, size - 1)
    lowest = paddle.full([1], -_FAR, dtype=scores.dtype)
    value = paddle.sort(paddle.where(mask, scores, lowest), axis=1, descending=True)
    value = value.astype("float64")
    valid = value > -0.5 * _FAR
    count = valid.astype("int64").sum(axis=1, keepdim=True)

    nothing = paddle.zeros_like(value[:, :1])
    before, after = _beside(value, nothing + _FAR, nothing - _FAR, k)
    here = value.unsqueeze(1)
    above, below = before - here, here - after
    # The k nearest are consecutive: of the j-th before and the (k + 1 - j)-th behind, one.
    farther = above > below
    distance = paddle.minimum(above, below)
    exists = (distance < 0.5 * _FAR).astype("float64")
    distance = distance * exists
    # Their places, behind k values that stand for none.
    place = paddle.arange(size, dtype="int64")
    nearest = farther.astype("int64") * (k + 1) + place[:k].unsqueeze(1) + place
    nearest = nearest.reshape([-1, k * size])

    def of_neighbours(x: Tensor) -> Tensor:
        padded = paddle.nn.functional.pad(x, [0, 0, k, k])
        found = paddle.take_along_axis(padded, nearest, axis=1, broadcast=False)
        return found.reshape([-1, k, size]) * exists

    # scikit-learn clamps k to the number of other points, at least one.
    share = paddle.reciprocal((count - 1).clip(1, k).astype("float64"))
    reach = paddle.maximum(of_neighbours(distance.max(axis=1)), distance)
    # A tensor, because the exporter adds a Python number in float32.
    epsilon = paddle.full([1], 1e-10, dtype="float64")
    spread = reach.sum(axis=1) * share + epsilon
    # A single point has no neighbours: its factor is 0.
    factor = of_neighbours(paddle.reciprocal(spread)).sum(axis=1) * share * spread

    outlier = paddle.logical_and(factor > threshold, valid)
    if side == "above_median":
        middle = [
            paddle.take_along_axis(value, i, axis=1, broadcast=False)
            for i in (((count - 1) // 2).clip(min=0), count // 2)
        ]
        outlier = paddle.logical_and(outlier, value + value > middle[0] + middle[1])
    return outlier.astype("int64").sum(axis=1)


def _beside(x: Tensor, first: Tensor, last: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The values k, …, 1 places before each value and 1, …, k places behind it: x [B, N], with the
    values [B, 1] that continue it at its ends -> [B, k, N] twice.

    If a row of length L is repeated and read in rows of L + 1, each begins one place later. In ONNX
    Runtime that takes half as long as a gather, which copies number by number."""
    size, rows = x.shape[1], 2 * k + 1
    long = paddle.concat([first] * k + [x] + [last] * k, axis=1)
    width = size + 2 * k + 1
    repeated = paddle.tile(long, [1, rows + 1])[:, : rows * width].reshape([-1, rows, width])
    return repeated[:, :k, :size], repeated[:, k + 1 :, :size]


class Ranking(NamedTuple):
    """Patches from the highest score down; ties by patch number."""

    order: Tensor
    """[B, N] int64: the patch at each rank."""
    rank: Tensor
    """[B, N] int64: the rank of each patch."""


def ranking(scores: Tensor) -> Ranking:
    """The ranking of scores [B, N]. One serves all choices among them."""
    order = paddle.argsort(scores, axis=1, descending=True, stable=True)
    # The result needs an array of its own, because a saved graph writes into the first argument.
    empty = paddle.zeros_like(order)
    place = empty + paddle.arange(scores.shape[1], dtype="int64")
    return Ranking(order, paddle.put_along_axis(empty, order, place, axis=1, broadcast=False))


def best(ranks: Ranking, mask: Tensor, count: Tensor) -> Tensor:
    """Mask [B, N] of the `count` [B] highest of the patches in the mask [B, N]."""
    found = places_among(ranks, mask) <= count.unsqueeze(1)
    return paddle.logical_and(found, mask)


def places_among(ranks: Ranking, mask: Tensor) -> Tensor:
    """How many patches of the mask [B, N] have at most the rank of each patch: [B, N] int64. That
    counts a patch of the mask itself, so the highest has 1."""
    inside = paddle.take_along_axis(mask.astype("int64"), ranks.order, axis=1, broadcast=False)
    counted = paddle.cumsum(inside, axis=1)
    return paddle.take_along_axis(counted, ranks.rank, axis=1, broadcast=False)


def top(scores: Tensor, count: Tensor) -> Tensor:
    """Mask [B, N] of the `count` [B] highest scores [B, N]."""
    return ranking(scores).rank < count.unsqueeze(1)


def share_budget(groups: list[Tensor], rest: Tensor, bounds: Tensor, size: int) -> list[Tensor]:
    """Brings the counts that the filter found within the bounds.

    A sum outside them is replaced by the nearest bound. The groups share that in the proportion
    that the filter found, rounded so that they sum to it exactly; if the filter found nothing, the
    first two share it equally. With a least number of all patches each is visual: there is nothing
    to choose or merge, whatever the filter found.

    Shapes: three groups [B], rest [B] (1 where a rest token may be added) and bounds [B, 2] of
    int64 -> the three groups and the rest token, [B] each."""
    visual, text, centres = groups
    left_over = (size - visual - text - centres > 0).astype("int64")
    found_rest = rest * left_over
    found = visual + text + centres + found_rest
    target = paddle.minimum(paddle.maximum(found, bounds[:, 0]), bounds[:, 1])

    new_rest = paddle.logical_and(target > 1, target < size).astype("int64") * rest
    share = target - new_rest
    empty = (visual + text + centres == 0).astype("int64")
    weight_visual, weight_text = visual + empty, text + empty
    total = weight_visual + weight_text + centres
    # Rounding the running sum, not each group, keeps the total exact.
    new_visual = (2 * share * weight_visual + total) // (2 * total)
    new_both = (2 * share * (weight_visual + weight_text) + total) // (2 * total)
    whole = bounds[:, 0] >= size
    new_visual, new_both = (paddle.where(whole, share, some) for some in (new_visual, new_both))

    changed = paddle.logical_or(target != found, whole)
    return [
        paddle.where(changed, new, old)
        for new, old in (
            (new_visual, visual),
            (new_both - new_visual, text),
            (share - new_both, centres),
            (new_rest, found_rest),
        )
    ]


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of each image: x [B, N, C], index [B, K] int64 -> [B, K, C].

    One flat gather, because an element-wise one over C channels is slow in every runtime."""
    size, width = x.shape[1], x.shape[2]
    image = paddle.cumsum(paddle.ones_like(index[:, :1]), axis=0) - 1
    rows = paddle.gather(x.reshape([-1, width]), (index + image * size).flatten())
    shape = paddle.shape(index)
    return rows.reshape([shape[0], shape[1], width])


def nearest_members(similarity: Tensor, candidates: Tensor, members: int) -> Tensor:
    """For each centre its most similar candidates.

    Shapes: similarity [B, K, N], candidates [B, K, N] bool -> [B, K, N] bool with at most `members`
    (and at most as many as there are) set in each row."""
    lowest = paddle.full([1], float("-inf"), dtype=similarity.dtype)
    masked = paddle.where(candidates, similarity, lowest)
    value, place = paddle.topk(masked, min(members, similarity.shape[2]), axis=-1)
    chosen = paddle.put_along_axis(
        paddle.zeros_like(similarity),
        place,
        (value > lowest).astype(similarity.dtype),
        axis=2,
        broadcast=False,
    )
    return chosen > 0.5
