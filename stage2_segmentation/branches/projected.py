""" "1 × TransEnc" for hosts without patch tokens: the branch projects the map itself (He et al. 2022, Table 7).

Legend: B images, C h w the backbone's map, T cells looked at, K all labels, D the branch's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.config import refuse_below, refuse_no_share
from kappaseg_core.label_heads.pooled import log_odds
from kappaseg_core.precision import full_precision
from stage2_segmentation.branches import ClassHost, class_table, refuse_heads
from stage2_segmentation.hosts.segmenter import init_linear
from stage2_segmentation.hosts.transformer import Block
from stage2_segmentation.structures import Seen


@dataclass(frozen=True)
class Options:
    """Sizes of the block; null = as released for the width."""

    classes: Literal["shared", "own"] = "shared"
    """class tokens: the host's rows (as released for DeepLabV3 and Swin), or some of the branch (BEiT)"""
    width: int | None = None
    """of own class tokens; null = the host's"""
    pooled: int = 16
    """the map is reduced to pooled × pooled cells for the labels to look at; 0 = all cells (as released for Swin)"""
    pooling: Literal["mean", "max"] = "mean"
    """of the cells that become one; max with half the cells a side is the last level of BEiT's feature pyramid"""
    projection: Literal["separable", "linear"] = "separable"
    """from the map's channels to the width. separable: a factor and a shift per channel, ReLU, a linear layer, ReLU (as
    released); linear: one linear layer"""
    attend: Literal["all", "patches"] = "all"
    """all: class tokens attend to cells and to each other, quadratic in K (as released); patches: to cells alone,
    linear in K, with the same parameters (ours)"""
    heads: int | None = None
    """null = width / 64"""
    ffn: int | None = None
    """null = 4 × width"""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        refuse_below(0, self, "pooled")
        refuse_below(1, self, "width", "heads", "ffn")
        refuse_no_share(self, "dropout")
        if self.classes == "shared" and self.width is not None:
            raise ValueError(f"width = {self.width}, but shared class tokens have the host's; leave it out")


class ProjectedBranch(nn.Module):
    """One transformer block over projected cells and K class tokens; logit_k = ⟨W_k, c_k⟩ + b_k.

    What the block makes of the class tokens serves the labels alone: the host goes on with its rows as they are (as
    released; the sizes that the paper prints hold one more linear layer, whose use was not published).
    """

    def __init__(self, options: Options, num_classes: int, width: int, in_channels: int) -> None:
        super().__init__()
        heads = options.heads or max(1, width // 64)
        refuse_heads(heads, width)
        self.pooled, self.attend = options.pooled, options.attend
        self.pool = F.adaptive_max_pool2d if options.pooling == "max" else F.adaptive_avg_pool2d
        self.shares_classes = options.classes == "shared"
        self.classes = None if self.shares_classes else nn.Parameter(torch.empty(num_classes, width))
        linear = nn.Conv2d(in_channels, width, 1)
        by_channel = [nn.Conv2d(in_channels, in_channels, 1, groups=in_channels), nn.ReLU(), linear, nn.ReLU()]
        self.project = nn.Sequential(*(by_channel if options.projection == "separable" else [linear]))
        self.block = Block(width, heads, options.ffn or 4 * width, options.dropout)
        self.norm = nn.LayerNorm(width)
        self.weight = nn.Parameter(torch.empty(num_classes, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.empty(num_classes).uniform_(-(width**-0.5), width**-0.5))
        self.block.apply(init_linear)
        if self.classes is not None:
            nn.init.trunc_normal_(self.classes, std=0.02)

    def forward(self, host: ClassHost, features: Tensor, classes: Tensor | None = None) -> Seen:
        seen = self.project(self.pool(features, self.pooled) if self.pooled else features).flatten(2).mT
        asked = self.classes if self.classes is not None else host.cls_emb if classes is None else classes
        asked = asked.expand(features.shape[0], -1, -1)
        if self.attend == "patches":
            tokens = self.norm(self.block.refine(asked, seen))
        else:
            tokens = self.norm(self.block(torch.cat([seen, asked], dim=1))[:, seen.shape[1] :])
        with full_precision(features.device):
            logits = torch.einsum("bkd,kd->bk", tokens.float(), self.weight.float()) + self.bias.float()
        return Seen(features, logits, classes)

    @torch.no_grad()
    def set_prior(self, frequency: Tensor) -> None:
        """Start from how common each label is: frequency f32 [K], the share of images that hold it."""
        self.bias.copy_(log_odds(frequency))


def build(options: Options, host: ClassHost, *, num_classes: int, in_channels: int) -> ProjectedBranch:
    """The branch for a host with class embeddings [K, D], or with class tokens of its own for any host."""
    width = options.width or class_table(host).shape[1]
    return ProjectedBranch(options, num_classes, width, in_channels)
