"""A plain vision transformer of timm in two parts: its first blocks on the image, its last ones with further tokens.

Legend: B images, P prefix tokens (class, registers), h w cells, N further tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Begun:
    """Images behind the first blocks of a plain ViT.

    tokens: f32 [B, P + h·w, D], prefix tokens, then the patches row by row.   grid: (h, w).
    left: the blocks not yet run, each with the rotations of its patches' queries and keys; None where positions are in
    the tokens.
    """

    model: Any
    tokens: Tensor
    grid: tuple[int, int]
    left: list[tuple[nn.Module, Tensor | None]]

    def joined(self, further: Tensor) -> Tensor:
        """Further tokens [B, N, D] behind those of the images: [B, P + h·w + N, D]."""
        return torch.cat([self.tokens, further.to(self.tokens.dtype)], dim=1)

    def through(self, number: int, tokens: Tensor, attend: Tensor | None = None) -> Tensor:
        """Tokens [B, P + h·w + N, D] through one of the blocks that are left, the first of which has number 0.

        attend: bool, broadcastable to [B, 1, tokens, tokens]: which token (third axis) may look at which (fourth).
        Further tokens have no place in the image: they are not rotated.
        """
        block, rotations = self.left[number]
        given: dict[str, Any] = {"attn_mask": attend}
        if rotations is not None:
            given["rope"] = with_identity(rotations, tokens.shape[1] - self.tokens.shape[1])
        again = self.model.grad_checkpointing  # BackboneConfig.checkpointing
        found: Tensor = checkpoint(block, tokens, use_reentrant=False, **given) if again else block(tokens, **given)
        return found

    def norm(self, tokens: Tensor) -> Tensor:
        """The norm behind the last block."""
        normed: Tensor = self.model.norm(tokens)
        return normed

    def map(self, tokens: Tensor) -> Tensor:
        """The patches among tokens [B, P + h·w + N, D] as a map [B, D, h, w]."""
        prefix, count = int(self.model.num_prefix_tokens), self.grid[0] * self.grid[1]
        return tokens[:, prefix : prefix + count].transpose(1, 2).unflatten(2, self.grid)


def has_plain_blocks(model: nn.Module) -> bool:
    """Whether a model of timm is a plain ViT: with absolute positions (AugReg, DINOv2), or rotary ones (DINOv3)."""
    return isinstance(model, VisionTransformer | Eva)


def begin(model: Any, images: Tensor, left: int, *, stride: int) -> Begun:
    """Images, their sides multiples of the patches' stride, through all blocks but the last `left`."""
    patches, grid = model.patch_embed(images), (images.shape[-2] // stride, images.shape[-1] // stride)
    if isinstance(model, Eva):
        tokens, rotations = model._pos_embed(patches)
    else:
        tokens, rotations = model.patch_drop(model._pos_embed(patches)), None
    tokens = model.norm_pre(tokens)
    of_blocks: Any = rotations if getattr(model, "rope_mixed", False) else [rotations] * len(model.blocks)
    blocks = list(zip(model.blocks, of_blocks, strict=True))
    begun = Begun(model, tokens, grid, blocks)
    for number in range(len(blocks) - left):
        tokens = begun.through(number, tokens)
    return replace(begun, tokens=tokens, left=blocks[len(blocks) - left :])


def with_identity(rotations: Tensor, further: int) -> Tensor:
    """Rotations [..., h·w, 2·d], sines and then cosines, and behind them `further` ones that turn nothing."""
    sines, cosines = rotations[..., :1, :].chunk(2, dim=-1)
    shape = (*sines.shape[:-2], further, sines.shape[-1])
    identity = torch.cat([sines.new_zeros(shape), cosines.new_ones(shape)], dim=-1)
    return torch.cat([rotations, identity], dim=-2)
