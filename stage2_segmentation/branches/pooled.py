""" "GAP + Linear": a hidden layer per cell or on the mean, and one linear layer (Table 6, He et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kappaseg_core.config import refuse_no_share
from kappaseg_core.label_heads import PooledLinear
from stage2_segmentation.structures import Seen


@dataclass(frozen=True)
class Options:
    """How the cells are pooled, and the hidden layer before it."""

    pooling: Literal["mean", "log_sum_exp"] = "mean"
    """mean: global average pooling (as published); log_sum_exp: the layers at every cell, then a soft maximum (ours)"""
    hidden: bool = True
    """a layer with ReLU as wide as the map (as published)"""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        refuse_no_share(self, "dropout")


class PooledBranch(nn.Module):
    """Labels from pooled features, linear in K; it shares nothing with the host."""

    samples_labels = True

    def __init__(self, options: Options, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.pooling = options.pooling
        self.hidden = nn.Linear(in_channels, in_channels) if options.hidden else None
        self.linear = PooledLinear(in_channels, num_classes, options.dropout, options.pooling)

    def forward(self, host: Any, features: Tensor, classes: Tensor | None = None, labels: Tensor | None = None) -> Seen:
        seen = features.mean((2, 3), keepdim=True) if self.pooling == "mean" else features
        if self.hidden is not None:
            seen = self.hidden(seen.movedim(1, 3)).relu().movedim(3, 1)
        learnt = None if labels is None else self.linear.logits_for(seen, labels)
        with torch.set_grad_enabled(torch.is_grad_enabled() and learnt is None):
            return Seen(features, self.linear(seen), classes, learnt_logits=learnt)

    def set_prior(self, frequency: Tensor) -> None:
        """Start from how common each label is: frequency f32 [K], the share of images that hold it."""
        self.linear.set_prior(frequency)


def build(options: Options, host: Any, *, num_classes: int, in_channels: int) -> PooledBranch:
    """The branch for a map of `in_channels` channels."""
    return PooledBranch(options, num_classes, in_channels)
