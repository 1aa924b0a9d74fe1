"""Cross-entropy of every pixel over its nearest labels and its own (Jain et al., ICCV 2021).

Legend: B images, κ ranks, k nearest ones, D width of the space, P pixels, h w cells, H W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kappaseg_core.precision import full_precision
from kappaseg_core.ranking import IGNORE, Ranking, to_rank_space
from stage2_segmentation.pixels import Axis, Strips, both_axes, strips_of
from stage2_segmentation.structures import NearestPrediction

#: labels that pixels are compared with at one time
LABELS_AT_ONCE = 512
LEAST = 1e-12  # of a squared distance: the root of 0 has no gradient


def nearest_loss(
    prediction: NearestPrediction, mask: Tensor, ranking: Ranking, num_classes: int, *, cell: int, stride: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of mask i64 [B, H, W], and figures to watch; both as of `segmentation_loss`, but for the labels.

    A pixel is the point x that bilinear upsampling of the cells gives, z_l = -scale · ‖x - c_l‖, and its loss is
    -log softmax(z)[y] over the k nearest labels and y. To this comes max(0, margin - ‖c_l - c_m‖) of the two labels of
    the batch's rankings that are nearest to each other. Nothing has κ numbers per pixel, or more than `LABELS_AT_ONCE`.
    """
    mask = mask[:, stride // 2 :: stride, stride // 2 :: stride]
    target = to_rank_space(mask, ranking, num_classes)
    cells = prediction.cells
    rows, columns = both_axes(cells.shape[2:], cell, mask.shape[1:], cells, stride=stride)
    with full_precision(cells.device):
        total, right = NearestCrossEntropy.apply(
            cells, prediction.rows, prediction.valid, target, rows, columns, prediction.nearest, prediction.scale
        )
        pushed = (
            prediction.margin - least_distance(prediction.rows, ranking) if prediction.margin else cells.new_zeros(())
        )
    labelled = (mask != IGNORE).sum().clamp_min(1)
    figures = {"kept": (target != IGNORE).sum() / labelled, "pixel_accuracy": right / labelled}
    return total / target.numel() + pushed.relu(), figures


def nearest_ranks(points: Tensor, rows: Tensor, valid: Tensor, count: int) -> Tensor:
    """Ranks i64 [P, count] of the rows f32 [κ, D] that are nearest to points f32 [P, D], the nearest one first.

    valid: bool [κ]; ranks that are not are behind all others. Fewer columns where κ is less.
    """
    lengths = rows.square().sum(1).masked_fill(~valid, torch.inf)
    best, ranks = points.new_empty(len(points), 0), valid.new_empty(len(points), 0, dtype=torch.int64)
    for start in range(0, len(rows), LABELS_AT_ONCE):
        part = slice(start, start + LABELS_AT_ONCE)
        # ‖x - c‖² without ‖x‖², which orders nothing
        distances = torch.addmm(lengths[part], points, rows[part].T, alpha=-2)
        found, where = distances.topk(min(count, distances.shape[1]), dim=1, largest=False)
        best, ranks = torch.cat([best, found], dim=1), torch.cat([ranks, where + start], dim=1)
        best, kept = best.topk(min(count, best.shape[1]), dim=1, largest=False)
        ranks = ranks.gather(1, kept)
    return ranks


class NearestCrossEntropy(torch.autograd.Function):
    """The sum over pixels and its gradient, strip by strip; backward only scales what forward found."""

    @staticmethod
    def forward(
        ctx: Any, cells: Tensor, rows: Tensor, valid: Tensor, target: Tensor, down: Axis, along: Axis, count: int,
        scale: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """cells f32 [B, D, h, w], rows f32 [B, κ, D], target i64 [B, H, W] of ranks or IGNORE, the weights of both axes
        → (Σ loss, pixels that are right)."""
        wanted = any(ctx.needs_input_grad[:2])
        images = [
            one_image(Strips(one, down, along), its_rows, its_valid, its_target, count, scale, with_gradient=wanted)
            for one, its_rows, its_valid, its_target in zip(cells.permute(0, 2, 3, 1), rows, valid, target, strict=True)
        ]
        losses, rights, of_cells, of_rows = zip(*images, strict=True)
        if wanted:
            ctx.save_for_backward(torch.stack(of_cells).permute(0, 3, 1, 2), torch.stack(of_rows))
        right = torch.stack(rights).sum()
        ctx.mark_non_differentiable(right)
        return torch.stack(losses).sum(), right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        of_cells, of_rows = ctx.saved_tensors
        return of_cells * grad, of_rows * grad, *[None] * 6


def one_image(
    strips: Strips, rows: Tensor, valid: Tensor, target: Tensor, count: int, scale: float, *, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Σ loss, pixels that are right, and the gradients for the cells [h, w, D] and the rows [κ, D] of one image."""
    across, rows = strips.across.requires_grad_(with_gradient), rows.detach().requires_grad_(with_gradient)
    gradients = [torch.zeros_like(across), torch.zeros_like(rows)]
    loss, right = across.new_zeros(()), target.new_zeros(())
    numbers = max(min(len(rows), LABELS_AT_ONCE), (count + 1) * rows.shape[1])
    height, width = target.shape
    for top, bottom in strips_of(height, width, numbers, across.device):
        kept = target[top:bottom] != IGNORE
        with torch.set_grad_enabled(with_gradient):
            of_strip, its_right = of_points(
                strips.strip(top, bottom)[kept], rows, valid, target[top:bottom][kept], count, scale
            )
        if with_gradient:
            for gradient, more in zip(gradients, torch.autograd.grad(of_strip, [across, rows]), strict=True):
                gradient += more
        loss, right = loss + of_strip.detach(), right + its_right
    return loss, right, (strips.columns.T @ gradients[0]), gradients[1]


def of_points(
    points: Tensor, rows: Tensor, valid: Tensor, target: Tensor, count: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Σ loss of points [P, D] whose ranks are target i64 [P], and how many of them are right."""
    with torch.no_grad():
        near = nearest_ranks(points, rows, valid, count)
        twice = (near == target[:, None]) | ~valid[near]
    candidates = torch.cat([target[:, None], near], dim=1)
    distances = (points[:, None] - rows[candidates]).square().sum(2).clamp_min(LEAST).sqrt()
    logits = (-scale * distances).masked_fill(F.pad(twice, (1, 0)), -torch.inf)
    return (logits.logsumexp(1) - logits[:, 0]).sum(), (near[:, 0] == target).sum()


def least_distance(rows: Tensor, ranking: Ranking) -> Tensor:
    """Of the two labels in the batch's rankings that are nearest to each other; infinite where there is one label.

    rows: f32 [B, κ, D].   paper: of all K; ours: of those that the step reads, all with the complete ranking.
    """
    labels, where = ranking.labels[ranking.valid].unique(return_inverse=True)
    one_of_each = torch.empty_like(labels).scatter_(0, where, torch.arange(len(where), device=where.device))
    points = rows[ranking.valid][one_of_each]
    if len(points) < 2:
        return points.new_full((), torch.inf)
    with torch.no_grad():
        there = torch.ones(len(points), dtype=torch.bool, device=points.device)
        near = torch.cat([nearest_ranks(some, points, there, 2) for some in points.split(LABELS_AT_ONCE)])
        own = torch.arange(len(points), device=points.device)
        other = torch.where(near[:, 0] == own, near[:, 1], near[:, 0])  # the same point twice: either may come first
        first = (points - points[other]).square().sum(1).argmin()
    return (points[first] - points[other[first]]).square().sum().clamp_min(LEAST).sqrt()
