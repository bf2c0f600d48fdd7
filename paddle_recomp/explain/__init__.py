"""The picture of an answer: which patches were kept, for which reason, and what became of the
others."""

from paddle_recomp.explain.layout import stage_counts
from paddle_recomp.explain.page import draw_overlay

__all__ = ["draw_overlay", "stage_counts"]
