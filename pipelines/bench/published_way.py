"""Segmenter and RankSeg the way the published code computes them, to compare with.

The same networks and weights; different are attention (all weights of it held at once, dropout on them while training),
products (torch's own choice of a library, all activations kept; see kappaseg_core.products), the loss (K channels at
full resolution, then cross-entropy) and, for RankSeg, inference (κ logits into K channels).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from kappaseg_core.products import torch_alone
from stage2_segmentation.structures import Prediction

NOT_KEPT = -100.0  # what stands in the channels of labels that were not kept


@contextmanager
def attention_in_steps() -> Iterator[None]:
    """softmax(q kᵀ / √d) v as three operations, everywhere, for the time of the block, and products by torch itself."""
    fused = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attention  # type: ignore[assignment]
    try:
        with torch_alone():
            yield
    finally:
        F.scaled_dot_product_attention = fused


def attention(queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
              is_causal: bool = False) -> Tensor:  # fmt: skip
    assert not is_causal, "no network that is measured looks back only"
    scores = queries @ keys.mT * (1 / math.sqrt(queries.shape[-1]))
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p) @ values


def loss_of_all_pixels(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits [B, C, h, w] after upsampling to the size of target i64 [B, H, W]; -1 is ignored."""
    pixels = F.interpolate(logits.float(), target.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(pixels, target, ignore_index=-1, reduction="sum") / target.numel()


def loss_of_prediction(prediction: Prediction, target: Tensor) -> Tensor:
    """The same of a host's prediction, with its auxiliary logits."""
    beside = (each.weight * loss_of_all_pixels(each.rank_logits, target) for each in prediction.auxiliary)
    return sum(beside, loss_of_all_pixels(prediction.rank_logits, target))


def map_of_all_labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Label map i64 [B, H, W] of logits [B, K, h, w]."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)


def map_by_scatter(logits: Tensor, labels: Tensor, num_classes: int, size: tuple[int, int]) -> Tensor:
    """Label map i64 [B, H, W] of logits [B, κ, h, w] for labels i64 [B, κ]: scattered, upsampled, softmax, arg-max."""
    full = logits.new_full((len(logits), num_classes, *logits.shape[2:]), NOT_KEPT)
    full.scatter_(1, labels[..., None, None].expand_as(logits), logits)
    return F.interpolate(full, size, mode="bilinear", align_corners=False).softmax(1).argmax(1)


def map_of_queries(class_logits: Tensor, mask_logits: Tensor, size: Sequence[int]) -> Tensor:
    """Label map i64 [B, H, W] of Q queries: class logits [B, Q, K + 1], "no object" last, and mask logits [B, Q, h, w].

    The label with the largest Σ_q softmax(class_q)_k σ(mask_q) at a pixel, so K channels at full resolution. The
    transformers library upsamples these once more to the size of the original image, which is left out.
    """
    masks = F.interpolate(mask_logits, tuple(size), mode="bilinear", align_corners=False).sigmoid()
    return torch.einsum("bqk,bqhw->bkhw", class_logits.softmax(-1)[..., :-1], masks).argmax(1)
