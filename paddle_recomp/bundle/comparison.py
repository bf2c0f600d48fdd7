"""One comparison of a result of a bundle with the result that it should have, as plain data; and
the two ways to compare arrays of floats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """A number that was measured, and the limit that it has to keep."""

    batch: int
    stage: str
    """The graph, or what was compared in its place: `inputs`, `pipeline`, `decoder`, …"""
    name: str
    """The array."""
    measure: str
    """`difference` or `length`, where less is better, or `agreement`, `cosine`, `overlap` or
    `answers`, where more is."""
    value: float
    limit: float
    case: str = ""
    """The golden case; empty where the comparison is of all cases, or of none."""
    runtime: str = ""
    """What ran the bundle: `onnx fp32`, `paddle bf16`. Nothing did for its inputs."""

    @property
    def passed(self) -> bool:
        """Whether the limit is kept; NaN never is."""
        if self.measure in ("difference", "length"):
            return self.value <= self.limit
        return self.value >= self.limit


def relative_difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference, as a share of the largest value."""
    if not expected.size:
        return 0.0
    scale = max(float(np.abs(expected).max()), 1e-12)
    return float(np.abs(expected.astype("float64") - found).max()) / scale


def mean_cosine(expected: np.ndarray, found: np.ndarray) -> float:
    """[..., C] and [..., C] -> mean over all vectors; two zero vectors are equal."""
    ours, theirs = expected.astype("float64"), found.astype("float64")
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    cosine = (ours * theirs).sum(axis=-1) / np.where(lengths > 0, lengths, 1)
    same = (ours == theirs).all(axis=-1)
    return float(np.where((lengths == 0) & same, 1.0, cosine).mean())


def length_difference(expected: np.ndarray, found: np.ndarray) -> float:
    """[..., C] and [..., C] -> the difference of the sums of their vectors' lengths, as a share of
    the first sum."""
    vectors = (one.astype("float64") for one in (expected, found))
    ours, theirs = (np.linalg.norm(one, axis=-1).sum() for one in vectors)
    return float(abs(theirs - ours) / max(ours, 1e-12))
