"""How far the masks of queries are from true ones: at all pixels (MaskFormer) or at drawn points (Mask2Former).

No true mask is ever made as a map of its own: an image's segments are one map of numbers, which is compared.

Legend: H W pixels, h w cells, Q queries, S kept segments, N matched pairs of them, P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kappaseg_core.segments import VOID
from stage2_segmentation.pixels import to_pixels


@dataclass(frozen=True)
class Truth:
    """The segments of an image that are learnt: those whose label is kept.

    map: i32 [H, W].   numbers: i32 [S], the value of each segment in the map.   ranks: i64 [S].
    """

    map: Tensor
    numbers: Tensor
    ranks: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, segments: Tensor) -> Truth:
        """Some of them, in that order."""
        return Truth(self.map, self.numbers[segments], self.ranks[segments])


class MaskLoss(Protocol):
    """Mask logits are f32, in cells of `cell` pixels."""

    def costs(self, masks: Tensor, truth: Truth, cell: int) -> tuple[Tensor, Tensor]:
        """Of each query of an image with each segment: of the mask and of dice, f32 [Q, S]. masks: [Q, h, w]."""
        ...

    def losses(self, masks: Sequence[Tensor], truths: Sequence[Truth], cell: int) -> tuple[Tensor, Tensor]:
        """The same, summed over all pairs. masks: of each image, [N, h, w], in the order of its truth."""
        ...


class WholeMasks:
    """Focal loss and dice loss over all pixels (Cheng et al., NeurIPS 2021); costs over cells.

    With p = σ(x): α (1 - p)^2 (-log p) inside the true mask, (1 - α) p^2 (-log(1 - p)) outside, α = 1/4, mean over the
    pixels. Pixels without a label are outside all masks (as published).
    """

    alpha = 0.25

    def costs(self, masks: Tensor, truth: Truth, cell: int) -> tuple[Tensor, Tensor]:
        inside = (truth.map[::cell, ::cell] == truth.numbers[:, None, None]).flatten(1).to(masks)
        logits = begun_cells(masks, truth.map, cell).flatten(1)
        within, without = self.focal(logits)
        focal = without.sum(1, keepdim=True) + (within - without) @ inside.T
        return focal / logits.shape[1], pairwise_dice(logits.sigmoid(), inside)

    def losses(self, masks: Sequence[Tensor], truths: Sequence[Truth], cell: int) -> tuple[Tensor, Tensor]:
        """One image at a time, and again in the backward pass: its masks at full size are most of what a step holds."""
        found = [
            checkpoint(self.image_losses, own, truth, cell, use_reentrant=False, preserve_rng_state=False)
            for own, truth in zip(masks, truths, strict=True)
        ]
        focal, dice = (torch.stack(parts).sum() for parts in zip(*found, strict=True))
        return focal, dice

    def image_losses(self, masks: Tensor, truth: Truth, cell: int) -> tuple[Tensor, Tensor]:
        if not len(truth):  # no empty map can be resized
            return masks.sum(), masks.sum()
        height, width = truth.map.shape
        logits = to_pixels(masks[None], (height, width), cell)[0].flatten(1)
        inside = (truth.map == truth.numbers[:, None, None]).flatten(1)
        within, without = self.focal(logits)
        return torch.where(inside, within, without).mean(1).sum(), dice_loss(logits.sigmoid(), inside.to(logits))

    def focal(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The loss inside the true mask and outside of it."""
        share = logits.sigmoid()
        within = self.alpha * (1 - share).square() * F.softplus(-logits)
        return within, (1 - self.alpha) * share.square() * F.softplus(logits)


@dataclass(frozen=True)
class PointMasks:
    """Cross-entropy and dice loss at points (Cheng et al., CVPR 2022), drawn from torch's generator.

    Costs at points that all masks of an image share. Losses at points of each mask's own: of three times as many, those
    where it is least sure make up three quarters, and the others are drawn anew.
    """

    points: int
    oversampled: float = 3.0
    unsure: float = 0.75

    def costs(self, masks: Tensor, truth: Truth, cell: int) -> tuple[Tensor, Tensor]:
        points = torch.rand(1, self.points, 2, device=masks.device)
        logits = at_points(masks[None], points, truth, cell)[0]
        inside = share_inside(truth, points)
        cross_entropy = F.softplus(logits).sum(1, keepdim=True) - logits @ inside.T
        return cross_entropy / self.points, pairwise_dice(logits.sigmoid(), inside)

    def losses(self, masks: Sequence[Tensor], truths: Sequence[Truth], cell: int) -> tuple[Tensor, Tensor]:
        own, size = torch.cat(list(masks))[:, None], truths[0]
        with torch.no_grad():
            points = self.drawn(own, size, cell)
            parts = points.split([len(truth) for truth in truths])
            inside = torch.cat([share_inside(*pair) for pair in zip(truths, parts, strict=True)])
        logits = at_points(own, points, size, cell)[:, 0]
        cross_entropy = F.binary_cross_entropy_with_logits(logits, inside, reduction="none")
        return cross_entropy.mean(1).sum(), dice_loss(logits.sigmoid(), inside)

    def drawn(self, masks: Tensor, size: Truth, cell: int) -> Tensor:
        """Points [N, P, 2] of masks [N, 1, h, w]."""
        candidates = torch.rand(len(masks), int(self.oversampled * self.points), 2, device=masks.device)
        sure = at_points(masks, candidates, size, cell)[:, 0].abs()
        unsure = sure.topk(int(self.unsure * self.points), dim=1, largest=False).indices
        others = torch.rand(len(masks), self.points - unsure.shape[1], 2, device=masks.device)
        return torch.cat([candidates.gather(1, unsure[..., None].expand(-1, -1, 2)), others], 1)


def begun_cells(masks: Tensor, image: Tensor, cell: int) -> Tensor:
    """Of masks [Q, h, w] the cells that begin inside an image [H, W], one for each pixel of `image[::cell, ::cell]`.

    Hosts may give more where the sides are no multiples of the backbone's stride (hosts/feature_pyramid.py).
    """
    height, width = image.shape
    return masks[:, : -(-height // cell), : -(-width // cell)]


def at_points(masks: Tensor, points: Tensor, truth: Truth, cell: int) -> Tensor:
    """Mask logits [n, m, h, w] at points [n, P, 2] of an image as large as the truth's → [n, m, P].

    points: x and y in 0..1, from the image's upper left corner; its cells may reach beyond the other one.
    """
    (height, width), cells = truth.map.shape, masks.shape[2:]
    share = points.new_tensor([width / (cells[1] * cell), height / (cells[0] * cell)])
    grid = 2 * (points * share) - 1
    return F.grid_sample(masks, grid[:, None], mode="bilinear", align_corners=False)[:, :, 0]


def share_inside(truth: Truth, points: Tensor) -> Tensor:
    """How far points [S, P, 2] or [1, P, 2], x and y in 0..1, lie in each segment: f32 [S, P] in 0..1.

    A point between four pixels is as far inside as these are, weighted by their distance; beyond the edge nothing is.
    """
    height, width = truth.map.shape
    numbers = F.pad(truth.map, (1, 1, 1, 1), value=VOID)
    places = points * points.new_tensor([width, height]) + 0.5  # the centre of the first pixel is 1 of the padded map
    corner = places.floor()
    right, below = (places - corner).unbind(-1)
    column, row = corner.long().unbind(-1)
    share = torch.zeros(len(truth), points.shape[1], device=points.device)
    for down, weight in ((0, 1 - below), (1, below)):
        for across, part in ((0, 1 - right), (1, right)):
            share += (numbers[row + down, column + across] == truth.numbers[:, None]) * (weight * part)
    return share


def pairwise_dice(shares: Tensor, inside: Tensor) -> Tensor:
    """1 - (2 Σ p t + 1) / (Σ p + Σ t + 1) of mask probabilities [Q, n] and true shares [S, n] → [Q, S]."""
    return 1 - (2 * shares @ inside.T + 1) / (shares.sum(1)[:, None] + inside.sum(1) + 1)


def dice_loss(shares: Tensor, inside: Tensor) -> Tensor:
    """The same of N pairs [N, n], summed."""
    return (1 - (2 * (shares * inside).sum(1) + 1) / (shares.sum(1) + inside.sum(1) + 1)).sum()
