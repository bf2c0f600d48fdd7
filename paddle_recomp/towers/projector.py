"""LLaVA's projectors: from the vision tower's width to the language model's."""

from __future__ import annotations

import paddle.nn.functional as F  # noqa: N812
from paddle import nn

from paddle_recomp.checkpoint import ProjectorSpec
from paddle_recomp.types import Tensor


class Mlp2xGelu(nn.Layer):
    """LLaVA-1.5's projector."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__()
        bias = None if spec.bias else False
        self.linear_1 = nn.Linear(spec.in_features, spec.out_features, bias_attr=bias)
        self.linear_2 = nn.Linear(spec.out_features, spec.out_features, bias_attr=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, M, C] -> [B, M, D]."""
        return self.linear_2(F.gelu(self.linear_1(x)))


class LinearProjector(nn.Layer):
    """LLaVA-1.0's projector."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__()
        bias = None if spec.bias else False
        self.linear = nn.Linear(spec.in_features, spec.out_features, bias_attr=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, M, C] -> [B, M, D]."""
        return self.linear(x)


PROJECTORS: dict[str, type[nn.Layer]] = {"mlp2x_gelu": Mlp2xGelu, "linear": LinearProjector}


def make_projector(spec: ProjectorSpec) -> nn.Layer:
    """The layer of a projector, without its weights."""
    return PROJECTORS[spec.kind](spec)
