"""The last layer of a convolutional network over the kept labels: cells against gathered rows of the class weight.

Legend: B images, C channels and h w cells of a map, P = h·w, K all labels, κ kept labels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kappaseg_core.backbones import MapShape
from kappaseg_core.class_rows import rows_of
from kappaseg_core.precision import full_precision
from kappaseg_core.rank_scale import RankScale
from kappaseg_core.ranking import PADDING_LOGIT, Ranking
from stage2_segmentation.hosts.convolutions import convolution
from stage2_segmentation.structures import Auxiliary

#: none: logits as they are, as in the plain networks
Scale = Literal["none", "layer_norm", "shared_norm", "rank", "shared"]


class PixelClassifier(nn.Module):
    """Cells [B, C, h, w] and the ranking of B images → rank_logits f32 [B, κ, h, w].

    z_k = scale_k(⟨W_l, x⟩ + b_l) with l the label at rank k: the rows of a 1×1 convolution with K outputs that are
    wanted. Products of features as they are, not cosines; so layer_norm and shared_norm are the scales that fit.

    paper: a temperature per rank (Eq. 3); release: layer normalisation over the κ ranks in the ranked networks, none in
    the plain ones; ours: `scale`, the same for both unless told.
    """

    class_tables = ("cls_emb", "cls_bias")

    def __init__(
        self, num_classes: int, channels: int, *, kappa: int, scale: Scale = "none", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.cls_emb = nn.Parameter(torch.empty(num_classes, channels))
        self.cls_bias = nn.Parameter(torch.empty(num_classes))
        self.rank_scale = None if scale == "none" else RankScale(kappa, scale)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)
        nn.init.trunc_normal_(self.cls_bias, std=0.02)

    def forward(self, cells: Tensor, ranking: Ranking) -> Tensor:
        tokens = self.dropout(cells).flatten(2).mT
        rows, bias = rows_of(self.cls_emb, ranking.labels), rows_of(self.cls_bias, ranking.labels)
        with full_precision(cells.device):  # the sum over C channels in bf16 is only good to 0.4 %
            scores = tokens.float() @ rows.float().mT + bias.float()[:, None]
        valid = ranking.valid[:, None]
        logits: Tensor = scores if self.rank_scale is None else self.rank_scale(scores, valid)
        return logits.masked_fill(~valid, PADDING_LOGIT).mT.unflatten(2, cells.shape[2:])


class AuxiliaryHead(nn.Module):
    """A 3×3 convolution and a classifier of its own on an earlier map; it exists for its loss, so in training alone.

    release: over all K labels; ours: over the kept ones, like the network that it helps, so that no map has K channels.
    """

    def __init__(
        self, shape: MapShape, num_classes: int, *, kappa: int, width: int, weight: float, dropout: float
    ) -> None:
        super().__init__()
        self.cell, self.weight = shape.stride, weight
        self.convolution = convolution(shape.channels, width, side=3)
        self.classify = PixelClassifier(num_classes, width, kappa=kappa, dropout=dropout)

    def forward(self, cells: Tensor, ranking: Ranking) -> tuple[Auxiliary, ...]:
        """A map [B, C, h, w] → its logits; nothing in use."""
        if not self.training:
            return ()
        return (Auxiliary(self.classify(self.convolution(cells), ranking), self.cell, self.weight),)
