"""Shifted windows of a Swin on maps whose sides are no multiples of a window.

release (Swin for segmentation, mmsegmentation, transformers): the map is padded to whole windows, then shifted; timm:
shifted, then padded, so that cells from opposite edges of the image share a window at its padded edge. Where windows
fit, as for 224 and 384 pixels, both are the same; at 512 pixels windows of 7 and 12 cells fit on no map.
"""

from __future__ import annotations

from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.errors import UserError


def pad_before_shift(model: nn.Module, name: str) -> None:
    """Give the blocks of a Swin, in place, the class below. Raises UserError where it has none."""
    blocks = [module for module in model.modules() if type(module) is SwinTransformerBlock]
    if not blocks:
        raise UserError(f"backbone.options.pad_before_shift is for Swin; {name} is none, leave it out")
    for block in blocks:
        block.__class__ = PaddedBlock


class PaddedBlock(SwinTransformerBlock):
    """timm's, which is given maps of whole windows."""

    def _attn(self, x: Tensor) -> Tensor:
        """[B, h, w, D] → the same shape."""
        height, width = x.shape[1:3]
        below, right = -height % self.window_size[0], -width % self.window_size[1]
        found: Tensor = super()._attn(F.pad(x, (0, 0, 0, right, 0, below)))
        return found[:, :height, :width]
