"""Relative position biases of BEiT at any grid of patches.

timm makes the tables of a BEiT for one image size. Here they are resampled for the grid of the images at hand, with
align_corners = False, as for absolute positions (positions.py): bicubic by default, bilinear as in transformers.

Legend: h w cells of the grid, N = 1 + h·w tokens, A attention heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from timm.models.beit import Beit, gen_relative_position_index
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.backbones.positions import Interpolation

TABLE = ".relative_position_bias_table"
SPECIAL = 3  # last rows of a table: class token to patches, patches to class token, class token to itself


class Grid:
    """The grid (h, w) of the images that a model was last given: a hook on its patch embedding.

    pairs: [N, N], which row of a table is the bias between two tokens; made once per grid.
    """

    def __init__(self, patch: tuple[int, int]) -> None:
        self.patch, self.cells = patch, (0, 0)
        self.known: tuple[tuple[int, int], torch.device, Tensor] | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        height, width = inputs[0].shape[-2:]
        self.cells = height // self.patch[0], width // self.patch[1]

    def pairs(self, device: torch.device) -> Tensor:
        if device.type == "meta" or torch.compiler.is_compiling():
            return gen_relative_position_index(self.cells, device=device)
        if self.known is None or self.known[:2] != (self.cells, device):
            with torch.inference_mode(False):  # what an evaluation keeps is used in training
                self.known = (self.cells, device, gen_relative_position_index(self.cells, device=device))
        return self.known[2]


class RelativePositions:
    """The bias [1, A, N, N] of an attention layer for the grid at hand; takes the place of `_get_rel_pos_bias`.

    No module: the table stays the layer's parameter.
    """

    def __init__(self, attention: Any, grid: Grid, interpolation: Interpolation = "bicubic") -> None:
        self.attention, self.grid, self.interpolation = attention, grid, interpolation

    def __call__(self) -> Tensor:
        own: Tensor = self.attention.relative_position_bias_table
        table = resize_bias_table(
            own, old=self.attention.window_size, new=self.grid.cells, interpolation=self.interpolation
        )
        return table[self.grid.pairs(own.device)].permute(2, 0, 1).contiguous()[None]


def resize_bias_table(
    table: Tensor, *, old: tuple[int, int], new: tuple[int, int], interpolation: Interpolation = "bicubic"
) -> Tensor:
    """A table [(2h - 1)·(2w - 1) + 3, A] for the grid `old` as one for the grid `new`."""
    if tuple(old) == tuple(new):
        return table
    (height, width), size = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (old, new))
    between = table[:-SPECIAL].float().T.reshape(1, -1, height, width)
    between = F.interpolate(between, size=size, mode=interpolation, align_corners=False)
    return torch.cat([between[0].flatten(1).T.to(table.dtype), table[-SPECIAL:]])


def tables_resized(
    tensors: Mapping[str, Tensor], model: Any, interpolation: Interpolation = "bicubic"
) -> dict[str, Tensor]:
    """The tensors of a weight file with their tables, which are of square grids, made for the model's size.

    timm would do it too, by indexing that torch 2.9 and later read in another way. BEiT's release weighs distances
    geometrically; ours: as at any other grid.
    """
    found = dict(tensors)
    for key, table in tensors.items():
        if key.endswith(TABLE):
            side = (math.isqrt(len(table) - SPECIAL) + 1) // 2
            new = model.get_submodule(key.removesuffix(TABLE)).window_size
            found[key] = resize_bias_table(table, old=(side, side), new=new, interpolation=interpolation)
    return found


def has_relative_positions(model: nn.Module) -> bool:
    """Whether a model of timm is a BEiT whose blocks have tables of their own and nothing else tells positions."""
    return isinstance(model, Beit) and model.pos_embed is None and model.rel_pos_bias is None


def take_any_size(model: Any, interpolation: Interpolation) -> None:
    """Let a BEiT take images of any multiple of its patches."""
    grid = Grid(model.patch_embed.patch_size)
    model.patch_embed.strict_img_size = False
    model.patch_embed.register_forward_pre_hook(grid)
    for block in model.blocks:
        if block.attn.relative_position_bias_table is not None:
            block.attn._get_rel_pos_bias = RelativePositions(block.attn, grid, interpolation)
