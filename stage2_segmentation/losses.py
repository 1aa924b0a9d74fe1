"""Pixel-wise cross-entropy over the kept labels (Sec. 3.3, He et al. 2022). Legend: B images, κ ranks, H W pixels."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kappaseg_core.precision import full_precision
from kappaseg_core.ranking import IGNORE, Ranking, to_rank_space
from stage2_segmentation.nearest_loss import nearest_loss
from stage2_segmentation.pixels import Axis, Strips, both_axes, strips_of
from stage2_segmentation.structures import NearestPrediction, Prediction

#: ranks that the kernel for GPUs holds at most
KERNEL_RANKS = 1024


def prediction_loss(
    prediction: Prediction | NearestPrediction, mask: Tensor, ranking: Ranking, num_classes: int, *, cell: int,
    stride: int = 1,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The loss of a host's prediction, and figures to watch, which are those of its main logits."""
    if isinstance(prediction, NearestPrediction):
        return nearest_loss(prediction, mask, ranking, num_classes, cell=cell, stride=stride)
    loss, figures = segmentation_loss(prediction.rank_logits, mask, ranking, num_classes, cell=cell, stride=stride)
    for extra in prediction.auxiliary:
        further, _ = segmentation_loss(extra.rank_logits, mask, ranking, num_classes, cell=extra.cell, stride=stride)
        loss = loss + extra.weight * further
    return loss, figures


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
    logits = rank_logits.float()
    rows, columns = both_axes(logits.shape[2:], cell, mask.shape[1:], logits, stride=stride)
    with full_precision(logits.device):
        factor = cell // stride if cell % stride == 0 else None
        total, right = UpsampledCrossEntropy.apply(logits, target, rows, columns, factor)
    labelled = (mask != IGNORE).sum().clamp_min(1)
    return total / target.numel(), {"kept": (target != IGNORE).sum() / labelled, "pixel_accuracy": right / labelled}


class UpsampledCrossEntropy(torch.autograd.Function):
    """Upsampling and cross-entropy in one: the loss and its gradient, strip by strip, and never κ × H × W.

    The gradient of a strip is at hand while its softmax is in the cache, so it is taken to the cells at once:
    with p = softmax(z), d/d cells = rowsᵀ (p - onehot(target)) columns. backward only scales what forward found.
    Equal to F.cross_entropy(F.interpolate(...), reduction="sum") up to rounding. On a GPU it is one kernel, where
    Triton is there, a cell has a whole number of pixels and the ranks fit.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, rows: Axis, columns: Axis, factor: int | None
    ) -> tuple[Tensor, Tensor]:
        """logits f32 [B, κ, h, w], target i64 [B, H, W] of ranks or IGNORE, weights of both axes, and the pixels per
        cell where that is a whole number → (Σ loss, pixels that are right)."""
        cells, wanted = logits.permute(0, 2, 3, 1).contiguous(), ctx.needs_input_grad[0]
        if factor is not None and has_kernel(cells):
            from stage2_segmentation.fused_kernel import block_loss

            loss, right, gradient = block_loss(cells, target.contiguous(), factor)
        else:
            images = [
                one_image(one, its_target, rows, columns, with_gradient=wanted)
                for one, its_target in zip(cells, target, strict=True)
            ]
            loss, right, gradient = (torch.stack(parts) for parts in zip(*images, strict=True))
            loss, right = loss.sum(), right.sum()
        if wanted:
            ctx.save_for_backward(gradient.permute(0, 3, 1, 2))
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.saved_tensors[0] * grad, None, None, None, None


def has_kernel(cells: Tensor) -> bool:
    """Whether the loss of cells [B, h, w, κ] is computed by stage2_segmentation.fused_kernel."""
    return cells.is_cuda and cells.shape[3] <= KERNEL_RANKS and find_spec("triton") is not None


def one_image(
    cells: Tensor, target: Tensor, rows: Axis, columns: Axis, *, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ loss, pixels that are right, and the gradient for the cells [h, w, κ] of one image."""
    strips = Strips(cells, rows, columns)
    height, width, kappa = *target.shape, cells.shape[2]
    gradient = torch.zeros_like(strips.across) if with_gradient else strips.across
    loss, right = cells.new_zeros(()), target.new_zeros(())
    space: Tensor | None = None
    for top, bottom in strips_of(height, width, kappa, cells.device):
        space = cells.new_empty((bottom - top) * width * kappa) if space is None else space
        scores = strips.strip(top, bottom, out=space)
        kept = target[top:bottom] != IGNORE
        wanted = target[top:bottom].clamp_min(0)[..., None]
        scores -= scores.amax(2, keepdim=True)
        own = scores.gather(2, wanted)[..., 0]
        right += ((own == 0) & kept).sum()
        softmax = scores.exp_()
        total = softmax.sum(2)
        loss += ((total.log() - own) * kept).sum()
        if with_gradient:
            softmax.scatter_add_(2, wanted, -total[..., None])
            first, last = rows.cells(top, bottom)
            down = rows.weights[top:bottom, first:last].T * (kept / total).T[:, None]  # [W, cells, strip]
            gradient[first:last] += torch.bmm(down.contiguous(), softmax.transpose(0, 1)).transpose(0, 1)
    return loss, right, strips.columns.T @ gradient if with_gradient else gradient
