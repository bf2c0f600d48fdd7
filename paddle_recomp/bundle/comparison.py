"""One comparison of what a bundle computes with what it should compute, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """A number that was measured, and the limit that it has to keep."""

    batch: int
    stage: str
    """The graph, or what was compared in its place: `inputs`, `pipeline`, `decoder`, …"""
    name: str
    """The array."""
    measure: str
    """`difference`, where less is better, or `agreement`, `cosine`, `overlap` or `answers`, where
    more is."""
    value: float
    limit: float
    case: str = ""
    """The golden case; empty where the comparison is of all cases, or of none."""
    runtime: str = ""
    """What ran the bundle: `onnx fp32`, `paddle bf16`. Nothing did for its inputs."""

    @property
    def passed(self) -> bool:
        """Whether the limit is kept; NaN never is."""
        if self.measure == "difference":
            return self.value <= self.limit
        return self.value >= self.limit
