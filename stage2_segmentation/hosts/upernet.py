"""UPerNet over the kept labels (Xiao et al., "Unified Perceptual Parsing", ECCV 2018; He et al. 2022, Table 7).

On four stages (Swin, ConvNeXt, ResNet), or on four blocks of a plain ViT or BEiT, which a feature pyramid takes to
strides 4, 8, 16 and 32. Which of the two is seen from the strides of the maps.

Legend: B images, C_l channels and h_l w_l cells of map l, D width, κ kept labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.backbones import MapShape, Wants
from kappaseg_core.config import refuse_below, refuse_no_share
from kappaseg_core.ranking import Ranking
from stage2_segmentation.hosts.convolutions import convolution
from stage2_segmentation.hosts.feature_pyramid import pyramid_of
from stage2_segmentation.hosts.pixel_classifier import AuxiliaryHead, PixelClassifier, Scale
from stage2_segmentation.structures import Prediction, Seen

MAPS = 4


@dataclass(frozen=True)
class Options:
    """Sizes of the head; the defaults are those published for Swin (BEiT-L: width 1024)."""

    width: int = 512
    pools: tuple[int, ...] = (1, 2, 3, 6)
    """cells a side that the last map is averaged to, next to each other"""
    blocks: tuple[int, ...] | None = None
    """four blocks of a plain ViT, counted from 0; null = at equal distances (published for BEiT-L: 7, 11, 15, 23)"""
    norm_stages: bool = True
    """layer normalisation of every stage but the last, which the backbone normalises itself (as published for Swin);
    the blocks of a ViT are taken as the backbone gives them"""
    norm_eps: float = 1e-5
    """of these normalisations (published for ConvNeXt: 1e-6)"""
    dropout: float = 0.1
    rank_scale: Scale = "layer_norm"
    """kappaseg_core.rank_scale: layer_norm (as released), shared_norm, rank (Eq. 3), shared; none = the plain
    network's"""
    auxiliary: float = 0.4
    """weight of the loss of a head on the last map but one, in training; 0 = without"""
    auxiliary_width: int = 256

    def __post_init__(self) -> None:
        refuse_below(1, self, "width", "auxiliary_width")
        refuse_below(0, self, "auxiliary")
        refuse_no_share(self, "dropout")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps = {self.norm_eps}, wanted a number above 0")
        if min(self.pools, default=1) < 1:
            raise ValueError(f"pools = {list(self.pools)}, wanted 1 or more cells a side")
        if self.blocks is not None and len(self.blocks) != MAPS:
            raise ValueError(f"blocks = {list(self.blocks)}, wanted {MAPS} of them")


def wants(options: Options) -> Wants:
    return Wants(maps=MAPS, stages=options.blocks)


class UPerNet(nn.Module):
    """What was seen of B images and their ranking → rank_logits f32 [B, κ, h_1, w_1], in cells of the finest map."""

    def __init__(self, options: Options, *, num_classes: int, maps: Sequence[MapShape], kappa: int) -> None:
        super().__init__()
        self.levels, maps = pyramid_of(maps, norm_stages=options.norm_stages, norm_eps=options.norm_eps)
        self.cell = maps[0].stride
        self.fuse = Fusion(maps, options.width, options.pools)
        self.classify = PixelClassifier(
            num_classes, options.width, kappa=kappa, scale=options.rank_scale, dropout=options.dropout
        )
        self.auxiliary = (
            AuxiliaryHead(
                maps[-2], num_classes, kappa=kappa, width=options.auxiliary_width, weight=options.auxiliary,
                dropout=options.dropout,
            ) if options.auxiliary else None
        )  # fmt: skip

    @property
    def cls_emb(self) -> nn.Parameter:
        """The rows [K, D] that cells are compared with; a label branch may share them."""
        return self.classify.cls_emb

    def forward(self, seen: Seen, ranking: Ranking) -> Prediction:
        maps = self.levels(seen.maps)
        logits = self.classify(self.fuse(maps), ranking)
        return Prediction(logits, () if self.auxiliary is None else self.auxiliary(maps[-2], ranking))


class Fusion(nn.Module):
    """Maps [B, C_l, h_l, w_l], each coarser than the one before → [B, D, h_1, w_1]."""

    def __init__(self, maps: Sequence[MapShape], width: int, pools: Sequence[int]) -> None:
        super().__init__()
        self.strides = [shape.stride for shape in maps]
        self.context = Context(maps[-1].channels, width, pools)
        self.lateral = nn.ModuleList(convolution(shape.channels, width) for shape in maps[:-1])
        self.smooth = nn.ModuleList(convolution(width, width, side=3) for _ in maps[:-1])
        self.bottleneck = convolution(len(maps) * width, width, side=3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        levels = [lateral(features) for lateral, features in zip(self.lateral, maps[:-1], strict=True)]
        levels.append(self.context(maps[-1]))
        for fine in range(len(levels) - 2, -1, -1):
            levels[fine] = levels[fine] + self.refined(levels[fine + 1], fine + 1, fine, levels[fine])
        levels[:-1] = [smooth(level) for smooth, level in zip(self.smooth, levels[:-1], strict=True)]
        together = [self.refined(level, coarse, 0, levels[0]) for coarse, level in enumerate(levels)]
        out: Tensor = self.bottleneck(torch.cat(together, dim=1))
        return out

    def refined(self, level: Tensor, coarse: int, fine: int, like: Tensor) -> Tensor:
        """A coarse map at the cells of a finer one. Cells stay where they are in the image, and those beyond its edge
        are cut off (release: the map is stretched to the finer one's size; the same at sides of whole coarse cells)."""
        if coarse == fine:
            return level
        factor = self.strides[coarse] // self.strides[fine]
        height, width = like.shape[2:]
        return F.interpolate(level, scale_factor=factor, mode="bilinear")[..., :height, :width]


class Context(nn.Module):
    """[B, C, h, w] → [B, D, h, w]: the map and its means over ever smaller parts of the image (pyramid pooling)."""

    def __init__(self, inputs: int, width: int, pools: Sequence[int]) -> None:
        super().__init__()
        self.pools = tuple(pools)
        self.pooled = nn.ModuleList(convolution(inputs, width) for _ in pools)
        self.bottleneck = convolution(inputs + len(self.pools) * width, width, side=3)

    def forward(self, features: Tensor) -> Tensor:
        size = features.shape[2:]
        means = [
            F.interpolate(layer(F.adaptive_avg_pool2d(features, side)), size=size, mode="bilinear")
            for side, layer in zip(self.pools, self.pooled, strict=True)
        ]
        out: Tensor = self.bottleneck(torch.cat([features, *means], dim=1))
        return out


def build(options: Options, *, num_classes: int, maps: Sequence[MapShape], kappa: int) -> UPerNet:
    return UPerNet(options, num_classes=num_classes, maps=maps, kappa=kappa)
