"""Four maps of one stride → a pyramid, as BEiT has it for UPerNet (Bao et al., "BEiT", ICLR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kappaseg_core.backbones import MapShape
from kappaseg_core.errors import UserError
from stage2_segmentation.hosts.convolutions import BatchNorm

FINER = 4  # the first map of the pyramid has so many times more cells a side


class FeaturePyramid(nn.Module):
    """Maps [B, C, h, w] of four blocks → [B, C, 4h, 4w], [B, C, 2h, 2w], [B, C, h, w] and [B, C, h/2, w/2] rounded up.

    The first two by transposed convolutions that double the sides, the last by the maximum of 2 × 2 cells.
    shapes: of the four.   Raises UserError where a quarter of the stride is no whole number of pixels.
    """

    def __init__(self, maps: Sequence[MapShape]) -> None:
        super().__init__()
        stride, channels = maps[0].stride, [shape.channels for shape in maps]
        if stride % FINER:
            raise UserError(
                f"host.kind = upernet makes maps {FINER} times as fine as the backbone's, whose patches of {stride} "
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
