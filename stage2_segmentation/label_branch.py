"""The label branch of the joint scheme: the labels of an image from Segmenter's own tokens (Sec. 3.2, He et al. 2022).

Legend: B images, C h w the backbone's map, P = h·w, K all labels, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stage2_segmentation.hosts.segmenter import Segmenter, init_linear
from stage2_segmentation.hosts.transformer import Block


class EncoderLabelBranch(nn.Module):
    """ "1 × TransEnc" (Table 6): one transformer block over patch tokens and all K class embeddings.

    The block refines the class embeddings; logit_k = ⟨W_k, c_k⟩ + b_k. The refined embeddings of the selected labels
    are what the mask transformer goes on with. pooled: the map is first averaged to pooled × pooled cells (the same
    projection is used for both); the mask transformer then takes the patch tokens as they were. 0 = not pooled: it
    takes them as the block left them.

    Attention among K class tokens is quadratic in K (as published).
    """

    def __init__(self, host: Segmenter, *, pooled: int, heads: int, ffn: int, dropout: float = 0.1) -> None:
        super().__init__()
        num_classes, width = host.cls_emb.shape
        self.pooled = pooled
        self.block = Block(width, heads, ffn, dropout)
        self.norm = nn.LayerNorm(width)
        self.weight = nn.Parameter(torch.empty(num_classes, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.empty(num_classes).uniform_(-(width**-0.5), width**-0.5))
        self.block.apply(init_linear)

    def forward(self, host: Segmenter, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """features [B, C, h, w] → label logits f32 [B, K], class tokens [B, K, D], patch tokens [B, P, D]."""
        patches = host.read(features)
        seen = host.read(F.adaptive_avg_pool2d(features, self.pooled)) if self.pooled else patches
        classes = host.cls_emb.expand(len(features), -1, -1)
        seen, classes = self.block(torch.cat([seen, classes], dim=1)).split([seen.shape[1], classes.shape[1]], dim=1)
        classes = self.norm(classes)
        with torch.autocast(features.device.type, enabled=False):
            logits = torch.einsum("bkd,kd->bk", classes.float(), self.weight.float()) + self.bias.float()
        return logits, classes, patches if self.pooled else seen
