""" "1 × TransEnc": the mask transformer gets one more block in front, which ranks (Table 6, He et al. 2022).

Legend: B images, C h w the backbone's map, P = h·w, T tokens looked at, K all labels, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.config import refuse_below, refuse_no_share
from kappaseg_core.errors import UserError
from kappaseg_core.label_heads.pooled import log_odds
from kappaseg_core.precision import full_precision
from stage2_segmentation.branches import TokenHost, class_table, refuse_heads
from stage2_segmentation.hosts.segmenter import init_linear
from stage2_segmentation.hosts.transformer import Block
from stage2_segmentation.structures import Seen


@dataclass(frozen=True)
class Options:
    """Sizes of the block; null = those of the mask transformer as published."""

    pooled: int = 8
    """the map is averaged to pooled × pooled cells for the labels to look at; 0 = all cells (release: 8 at 512 pixels,
    0 for its two largest vocabularies; paper: 1/32, which is 16)"""
    attend: Literal["all", "patches"] = "all"
    """all: class tokens attend to patches and to each other, quadratic in K (as published); patches: to patches alone,
    linear in K, with the same parameters (ours)"""
    heads: int | None = None
    """null = width / 64"""
    ffn: int | None = None
    """null = 4 × width"""
    dropout: float = 0.1
    attention_dropout: float | None = None
    """null = dropout"""

    def __post_init__(self) -> None:
        refuse_below(0, self, "pooled")
        refuse_below(1, self, "heads", "ffn")
        refuse_no_share(self, "dropout", "attention_dropout")


class EncoderBranch(nn.Module):
    """One transformer block over patch tokens and all K class embeddings; logit_k = ⟨W_k, c_k⟩ + b_k.

    The refined embeddings c of the kept labels are what the mask transformer goes on with. With pooled cells it takes
    the patch tokens as they were, otherwise as the block left them.

    Raises UserError for `attend = patches` with all cells: their tokens would have to be refined apart.
    """

    samples_labels = False  # the mask transformer goes on with tokens of labels that only the ranking names
    shares_classes = True

    def __init__(self, options: Options, num_classes: int, width: int) -> None:
        super().__init__()
        if options.attend == "patches" and not options.pooled:
            raise UserError("labels.options.attend = patches needs pooled cells; set labels.options.pooled to 8 or 16")
        self.pooled, self.attend = options.pooled, options.attend
        heads, ffn = options.heads or max(1, width // 64), options.ffn or 4 * width
        refuse_heads(heads, width)
        self.block = Block(width, heads, ffn, options.dropout, options.attention_dropout)
        self.norm = nn.LayerNorm(width)
        self.weight = nn.Parameter(torch.empty(num_classes, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.empty(num_classes).uniform_(-(width**-0.5), width**-0.5))
        self.block.apply(init_linear)

    def forward(self, host: TokenHost, features: Tensor, classes: Tensor | None = None) -> Seen:
        patches = host.read(features)
        seen = host.read(F.adaptive_avg_pool2d(features, self.pooled)) if self.pooled else patches
        classes = host.cls_emb.expand(features.shape[0], -1, -1) if classes is None else classes
        if self.attend == "patches":
            classes = self.block.refine(classes, seen)
        else:
            tokens = self.block(torch.cat([seen, classes], dim=1))
            seen, classes = tokens.split([seen.shape[1], classes.shape[1]], dim=1)
        classes = self.norm(classes)
        with full_precision(features.device):
            logits = torch.einsum("bkd,kd->bk", classes.float(), self.weight.float()) + self.bias.float()
        return Seen(features, logits, classes, patches if self.pooled else seen)

    @torch.no_grad()
    def set_prior(self, frequency: Tensor) -> None:
        """Start from how common each label is: frequency f32 [K], the share of images that hold it."""
        self.bias.copy_(log_odds(frequency))


def build(options: Options, host: TokenHost, *, num_classes: int, in_channels: int) -> EncoderBranch:
    """The branch for a host with class embeddings [K, D]."""
    width = class_table(host).shape[1]
    if not hasattr(host, "read"):
        raise UserError(
            "labels.head = encoder shares a host's patch tokens, and this host has none; use projected (on queries of "
            "a mask network with labels.options.pooled 0)"
        )
    return EncoderBranch(options, num_classes, width)
