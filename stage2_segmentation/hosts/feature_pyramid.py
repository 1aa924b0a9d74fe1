"""Four maps of a backbone as hosts take them: of its stages, normalised, or of a plain ViT's blocks, as a pyramid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kappaseg_core.backbones import MapShape
from kappaseg_core.errors import UserError
from stage2_segmentation.hosts.convolutions import BatchNorm

FINER = 4  # the first map of the pyramid has so many times more cells a side


def pyramid_of(
    maps: Sequence[MapShape], *, norm_stages: bool, norm_eps: float = 1e-5
) -> tuple[nn.Module, list[MapShape]]:
    """From the maps of a backbone to four maps, each coarser than the one before, and the shapes of these.

    norm_stages: layer normalisation of every stage but the last; blocks of a ViT are taken as the backbone gives them.
    """
    if len({shape.stride for shape in maps}) > 1:
        return Stages(maps if norm_stages else (), norm_eps), list(maps)
    pyramid = FeaturePyramid(maps)
    return pyramid, pyramid.shapes


class Stages(nn.Module):
    """Layer normalisation of the channels of every cell, but not of the last map's. No shapes: maps as they are."""

    def __init__(self, shapes: Sequence[MapShape], eps: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(shape.channels, eps) for shape in shapes[:-1])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        count = len(self.norms)
        normed = [norm(features.movedim(1, 3)).movedim(3, 1) for norm, features in zip(self.norms, maps, strict=False)]
        return [*normed, *maps[count:]]


class FeaturePyramid(nn.Module):
    """A pyramid of maps of one stride, as BEiT has it for UPerNet (Bao et al., "BEiT", ICLR 2022).

    Maps [B, C, h, w] of four blocks → [B, C, 4h, 4w], [B, C, 2h, 2w], [B, C, h, w] and [B, C, h/2, w/2] rounded up.

    The first two by transposed convolutions that double the sides, the last by the maximum of 2 × 2 cells.
    shapes: of the four.   Raises UserError where a quarter of the stride is no whole number of pixels.
    """

    def __init__(self, maps: Sequence[MapShape]) -> None:
        super().__init__()
        stride, channels = maps[0].stride, [shape.channels for shape in maps]
        if stride % FINER:
            raise UserError(
                f"this host makes maps {FINER} times as fine as the backbone's, whose patches of {stride} "
                "pixels cannot be quartered; use a backbone with patches of 16"
            )
        strides = (stride // FINER, stride // 2, stride, 2 * stride)
        self.shapes = [MapShape(wide, side) for wide, side in zip(channels, strides, strict=True)]
        self.finest = nn.Sequential(doubled(channels[0]), BatchNorm(channels[0]), nn.GELU(), doubled(channels[0]))
        self.finer = doubled(channels[1])
        self.coarser = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        first, second, third, last = maps
        return [self.finest(first), self.finer(second), third, self.coarser(last)]


def doubled(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 2, stride=2)
