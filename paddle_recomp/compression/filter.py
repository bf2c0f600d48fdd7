"""The dynamic scale filter that methods share: how many scores stand out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paddle_recomp.compression import lazy_paddle as paddle
from paddle_recomp.compression import ops
from paddle_recomp.config import Options, option
from paddle_recomp.types import Tensor


@dataclass(frozen=True)
class FilterOptions(Options):
    """How outliers among scores are counted."""

    outliers: Literal["above_median", "all"] = option(
        "above_median",
        "Which outliers of the local outlier factor the dynamic scale filter counts.",
    )
    neighbours: int = option(
        20, "The outlier factor of visual and text scores looks at this many neighbours.", least=1
    )
    outlier_threshold: float = option(
        1.5, "A local outlier factor above this is an outlier (scikit-learn's `auto`)."
    )


def dynamic_count(visual_score: Tensor, bounds: Tensor, options: FilterOptions) -> Tensor:
    """As many tokens as the filter finds in the visual score, within the bounds.

    Shapes: visual_score [B, N], bounds [B, 2] int64 -> [B] int64."""
    everything = paddle.ones_like(visual_score) > 0
    found = ops.outlier_count(
        visual_score, everything, options.neighbours, options.outlier_threshold, options.outliers
    )
    return paddle.minimum(paddle.maximum(found, bounds[:, 0]), bounds[:, 1])
