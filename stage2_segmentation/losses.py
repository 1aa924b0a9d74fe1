"""Pixel-wise cross-entropy over the kept labels (Sec. 3.3, He et al. 2022). Legend: B images, κ ranks, H W pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kappaseg_core.precision import full_precision
from kappaseg_core.ranking import IGNORE, Ranking, to_rank_space
from stage2_segmentation.pixels import to_pixels


def segmentation_loss(
    rank_logits: Tensor, mask: Tensor, ranking: Ranking, num_classes: int, *, cell: int, stride: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy between rank_logits f32 [B, κ, h, w] and mask i64 [B, H, W], and figures to watch.

    -1/N Σ_i log softmax_k(z_ik)[rank of y_i], summed over pixels whose label was kept. Labels that the ranking missed
    are ignored, like pixels without a label (as published). N counts all pixels of the batch, ignored ones too (as
    released; an image whose labels were missed thereby weighs less, and a batch without any gives 0, not NaN).

    cell: side of a cell of the logits in pixels.   stride: every stride-th pixel of the mask counts.
    Figures, each f32 scalar in 0..1: `kept`, the share of labelled pixels whose label is among the kept ones;
    `pixel_accuracy`, the share of labelled pixels that are right now, missed ones counting as wrong.
    """
    mask = mask[:, stride // 2 :: stride, stride // 2 :: stride]
    target = to_rank_space(mask, ranking, num_classes)
    logits = to_pixels(rank_logits.float(), (mask.shape[1], mask.shape[2]), cell, stride=stride)
    with full_precision(logits.device):
        loss = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum") / target.numel()
    with torch.no_grad():
        kept = target != IGNORE
        labelled = (mask != IGNORE).sum().clamp_min(1)
        right = (logits.argmax(1) == target) & kept
        stats = {"kept": kept.sum() / labelled, "pixel_accuracy": right.sum() / labelled}
    return loss, stats
