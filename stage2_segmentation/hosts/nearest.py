"""Pixels and labels as points of one small space: a pixel has the label that is nearest to it (Jain et al., "Scaling
Semantic Segmentation Beyond 1K Classes on a Single GPU", ICCV 2021, "ESSNet").

What labels are compared with there is chosen for every pixel, where RankSeg chooses for every image: in training, a
pixel's softmax runs over its k nearest labels and its own. With `source.train: complete` nothing is ranked.

Legend: B images, C channels and h w cells of a map, D width of the space, K all labels, κ kept labels.

paper: DeepLabV3+ gives D = 6 to 12 numbers per pixel; ours: a 1×1 convolution of the backbone's map. paper, code: all
K labels are candidates; ours: those of the ranking, so all of them with the complete one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kappaseg_core.backbones import MapShape
from kappaseg_core.class_rows import rows_of
from kappaseg_core.config import refuse_below
from kappaseg_core.ranking import Ranking
from stage2_segmentation.structures import NearestPrediction, Seen

START = 0.1  # deviation of the labels' coordinates: neighbours then differ by a few logits, and all are learnt


@dataclass(frozen=True)
class Options:
    """The space, and the loss in it."""

    width: int = 12
    """D (published for ADE20K)"""
    nearest: int = 7
    """k, labels that a pixel's softmax has beside its own (published: 6 or 7)"""
    scale: float = 20.0
    """a label's logit is its distance times -scale (as published)"""
    margin: float = 0.2
    """distance up to which the two labels of the batch that are nearest to each other are pushed apart (as published);
    0 = not at all"""

    def __post_init__(self) -> None:
        refuse_below(1, self, "width", "nearest")
        refuse_below(0, self, "margin")
        if not self.scale > 0:
            raise ValueError(f"scale = {self.scale}, wanted a number above 0")


class Nearest(nn.Module):
    """What was seen of B images and their ranking → NearestPrediction, in cells of the map's stride."""

    class_tables = ("cls_emb",)

    def __init__(self, options: Options, num_classes: int, shape: MapShape) -> None:
        super().__init__()
        self.cell, self.options = shape.stride, options
        self.embed = nn.Conv2d(shape.channels, options.width, 1)
        self.cls_emb = nn.Parameter(torch.randn(num_classes, options.width) * START)

    def forward(self, seen: Seen, ranking: Ranking) -> NearestPrediction:
        options = self.options
        return NearestPrediction(
            self.embed(seen.features).float(), rows_of(self.cls_emb, ranking.labels), ranking.valid,
            nearest=options.nearest, scale=options.scale, margin=options.margin,
        )  # fmt: skip


def build(options: Options, *, num_classes: int, maps: Sequence[MapShape], kappa: int) -> Nearest:
    """The host for the last one of the backbone's maps."""
    return Nearest(options, num_classes, maps[-1])
