"""Position tables of plain vision transformers at any grid.

The table is resampled with align_corners = False and without antialiasing, as the published segmentation code does it
(bicubic in mmsegmentation, bilinear in the original Segmenter). timm's own way antialiases, which gives another table
wherever the grid gets smaller.

Legend: P prefix tokens with a position (class, register; 0 where they have none), h w cells, D width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Interpolation = Literal["bicubic", "bilinear"]
KEPT = 8  # tables kept at a time; images of many sizes must not fill the memory


def resize_table(
    table: Tensor, *, old: tuple[int, int], new: tuple[int, int], interpolation: Interpolation = "bicubic"
) -> Tensor:
    """A table [1, P + h·w, D] for the grid `old` as one for the grid `new`; the P prefix rows stay as they are."""
    if old == new:
        return table
    prefix = table.shape[1] - old[0] * old[1]
    cells = table[:, prefix:].float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, size=new, mode=interpolation, align_corners=False)
    return torch.cat([table[:, :prefix], cells.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


class Positions:
    """Puts prefix tokens before a grid of tokens and adds the positions: [B, h, w, D] → [B, tokens, D].

    Takes the place of `_pos_embed` of a timm VisionTransformer made with dynamic_img_size. No module: the parameters
    stay the model's. Tables that need no gradient are kept per grid until the model's own table changes.
    """

    def __init__(self, model: Any, interpolation: Interpolation) -> None:
        self.model, self.interpolation = model, interpolation
        self.kept: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, tokens: Tensor) -> Tensor:
        model, (batch, height, width, _) = self.model, tokens.shape
        table = self.table(height, width)
        tokens = tokens.flatten(1, 2)
        named = (model.cls_token, getattr(model, "dist_token", None), model.reg_token)
        prefix = [token.expand(batch, -1, -1) for token in named if token is not None]
        if model.no_embed_class:
            tokens = torch.cat([*prefix, tokens + table], dim=1)
        else:
            tokens = torch.cat([*prefix, tokens], dim=1) + table
        dropped: Tensor = model.pos_drop(tokens)
        return dropped

    def table(self, height: int, width: int) -> Tensor:
        """The table for a grid of height × width cells."""
        own: Tensor = self.model.pos_embed
        learns = torch.is_grad_enabled() and own.requires_grad
        if learns or own.is_meta or torch.compiler.is_compiling() or own.is_inference():
            return self.resized(own, height, width)
        key = (height, width, own.data_ptr(), own._version, own.device, own.dtype)
        if key not in self.kept:
            with torch.inference_mode(False), torch.no_grad():
                table = self.resized(own, height, width)
            if len(self.kept) >= KEPT:
                self.kept.clear()
            self.kept[key] = table
            return table
        return self.kept[key]

    def resized(self, own: Tensor, height: int, width: int) -> Tensor:
        return resize_table(
            own, old=self.model.patch_embed.grid_size, new=(height, width), interpolation=self.interpolation
        )
