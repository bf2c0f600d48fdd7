"""Muon for the matrices of the transformer layers, AdamW for everything else."""

from __future__ import annotations

import torch
from torch import nn


def make_optimizers(
    model: nn.Module, rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Two optimizers that share one learning rate; Muon's step is scaled to AdamW's size."""
    inner: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, value in model.named_parameters():
        if value.ndim == 2 and ".layers." in name:
            inner.append(value)
        else:
            (matrices if value.ndim > 1 else others).append(value)
    muon = torch.optim.Muon(
        inner, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    return [muon, adam]
