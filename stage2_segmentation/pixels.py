"""From cells to pixels. Legend: B images, κ ranks, h w cells, H W pixels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def to_pixels(logits: Tensor, size: tuple[int, int], cell: int, *, stride: int = 1) -> Tensor:
    """Bilinear upsampling of cell values f32 [B, κ, h, w] to pixels f32 [B, κ, H, W].

    cell: side of a cell in pixels. A map covers h·cell pixels of which only the first H are image (backbones pad to
    the right and to the bottom): what is beyond is cut off. (The released port stretches the padded map over the image
    instead, and so shifts it by up to one cell where the size is no multiple of it; the original Segmenter cuts.)
    stride: take every stride-th pixel; H and W are then counts of such pixels.
    """
    height, width = (-(-cells * cell // stride) for cells in logits.shape[-2:])
    if (height, width) != logits.shape[-2:]:
        logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
    return logits[..., : size[0], : size[1]]
