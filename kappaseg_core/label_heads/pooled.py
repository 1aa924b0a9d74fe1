"""One linear layer over the cells: the plain multi-label classifiers."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.class_rows import rows_of
from kappaseg_core.precision import full_precision


class PooledLinear(nn.Module):
    """The plain multi-label classifiers: one linear layer, pooled over the cells. [B, C, h, w] → logits f32 [B, K].

    pooling: "mean" = global average pooling, then the linear layer. "log_sum_exp" = the layer at every cell, then
    log (1/T Σ_t exp z_tk), a soft maximum (Pinheiro and Collobert, CVPR 2015): a label that fills a few cells need not
    outweigh all others. It holds T logits per label.
    """

    class_tables = ("linear.weight", "linear.bias")

    def __init__(
        self, in_channels: int, num_classes: int, dropout: float, pooling: Literal["mean", "log_sum_exp"] = "mean"
    ) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.linear = nn.Linear(in_channels, num_classes)
        self.pooling = pooling

    def forward(self, features: Tensor) -> Tensor:
        return self.pooled(features, self.linear.weight, self.linear.bias)

    def logits_for(self, features: Tensor, labels: Tensor) -> Tensor:
        """Logits f32 [B, n] of some labels only, i64 [n]: those columns of forward."""
        return self.pooled(features, rows_of(self.linear.weight, labels), rows_of(self.linear.bias, labels))

    def pooled(self, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with full_precision(features.device):
            cells = self.drop(features.float().flatten(2).mT)
            if self.pooling == "mean":
                return F.linear(cells.mean(1), weight, bias)
            return torch.logsumexp(F.linear(cells, weight, bias), dim=1) - math.log(cells.shape[1])

    @torch.no_grad()
    def set_prior(self, frequency: Tensor) -> None:
        """Start from how common each label is: frequency f32 [K], the share of images that hold it."""
        self.linear.bias.copy_(log_odds(frequency))


def log_odds(frequency: Tensor) -> Tensor:
    """log(π / (1 - π)), within ±9.2 (one image in ten thousand) so that a label never seen can still be learnt."""
    return torch.logit(frequency.float(), eps=1e-4)
