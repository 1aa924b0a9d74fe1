"""A host on several maps, with logits finer than the backbone's last map and an auxiliary loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.backbones import MapShape, Wants
from kappaseg_core.class_rows import rows_of
from kappaseg_core.ranking import PADDING_LOGIT, Ranking
from stage2_segmentation.structures import Auxiliary, Prediction, Seen


@dataclass(frozen=True)
class Options:
    width: int = 8


def wants(options: Options) -> Wants:
    return Wants(maps=2)


class TwoMaps(nn.Module):
    class_tables = ("labels.weight",)

    def __init__(self, width: int, num_classes: int, maps: Sequence[MapShape]) -> None:
        super().__init__()
        self.cell, self.coarse = maps[0].stride, maps[1].stride
        self.fine_cells, self.coarse_cells = (nn.Conv2d(shape.channels, width, 1) for shape in maps)
        self.labels = nn.Embedding(num_classes, width)

    def forward(self, seen: Seen, ranking: Ranking) -> Prediction:
        fine, coarse = self.fine_cells(seen.maps[0]), self.coarse_cells(seen.maps[1])
        factor = self.coarse // self.cell
        up = F.interpolate(coarse, scale_factor=factor)[..., : fine.shape[2], : fine.shape[3]]
        extra = (Auxiliary(self.logits(coarse, ranking), self.coarse, weight=0.4),) if self.training else ()
        return Prediction(self.logits(fine + up, ranking), extra)

    def logits(self, cells: Tensor, ranking: Ranking) -> Tensor:
        found = torch.einsum("bdhw,bkd->bkhw", cells, rows_of(self.labels.weight, ranking.labels))
        return found.float().masked_fill(~ranking.valid[:, :, None, None], PADDING_LOGIT)


def build(options: Options, *, num_classes: int, maps: Sequence[MapShape], kappa: int) -> TwoMaps:
    return TwoMaps(options.width, num_classes, maps)
