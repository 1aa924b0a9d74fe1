"""Matching queries to the true segments of an image, and the loss of what they then predict (Cheng et al. 2021, 2022).

A segment whose label the ranking dropped is left out before matching, so that its pixels teach no query a mask, and the
query that would have had it learns "no object" (as released for Mask2Former; counted in the figures).

Legend: B images, κ kept labels, h w cells, L layers, Q queries, S kept segments of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from kappaseg_core.precision import full_precision
from kappaseg_core.ranking import Ranking
from kappaseg_core.segments import Segments
from stage2_segmentation.mask_losses import MaskLoss, Truth, begun_cells
from stage2_segmentation.structures import QueryPrediction

#: of each image, queries and the segments that they have to predict: i64 [n], i64 [n]
Pairs = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LossRule:
    """Weights of the three losses, in matching as well, and of "no object" in the first one.   masks: how these are
    compared."""

    class_weight: float
    mask_weight: float
    dice_weight: float
    no_object: float
    masks: MaskLoss


def query_loss(
    prediction: QueryPrediction, segments: Sequence[Segments], ranking: Ranking, *, cell: int, rule: LossRule
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of all layers, each matched for itself, and figures to watch, f32 scalars.

    Σ_layers class · L_class + (mask · L_mask + dice · L_dice) / n, with n the kept segments of an average worker's
    batch, at least 1. L_class: cross-entropy over κ + 1 for all queries, its mean weighted by `no_object`.
    Crowds are no targets. A batch without a kept segment teaches "no object" alone.

    Figures, in which crowds do not count: `kept` and `kept_segments`, the shares of the segments' pixels and of the
    segments whose label is kept; `pixel_accuracy`, of the semantic map at one pixel a cell, missed labels counting as
    wrong; `class_loss`, `mask_loss`, `dice_loss` of the last layer, without their weights.
    """
    truths = [kept_truth(found, ranking.labels[i], ranking.valid[i]) for i, found in enumerate(segments)]
    layers = [*prediction.auxiliary, prediction]
    with full_precision(prediction.mask_logits.device):
        layers = [QueryPrediction(each.class_logits.float(), each.mask_logits.float()) for each in layers]
        number = over_workers(prediction.mask_logits.new_tensor(float(sum(map(len, truths)))))
        total, parts = prediction.mask_logits.new_zeros(()), {}
        for layer, pairs in zip(layers, matched(layers, truths, cell, rule), strict=True):
            parts = layer_losses(layer, truths, pairs, cell, rule, number)
            total = total + rule.class_weight * parts["class_loss"]
            total = total + rule.mask_weight * parts["mask_loss"] + rule.dice_weight * parts["dice_loss"]
        figures = kept_shares(segments, truths) | {name: value.detach() for name, value in parts.items()}
        figures["pixel_accuracy"] = accuracy_of_cells(layers[-1], segments, truths, cell)
    return total, figures


def kept_truth(segments: Segments, labels: Tensor, valid: Tensor) -> Truth:
    """The segments of an image whose label is among its κ ranks. labels: i64 [κ].   valid: bool [κ]."""
    at_rank = (segments.labels[:, None] == labels) & valid & ~segments.crowd[:, None]
    kept = at_rank.any(1).nonzero()[:, 0]
    return Truth(segments.map, (kept + 1).to(segments.map.dtype), at_rank[kept].int().argmax(1))


def over_workers(number: Tensor) -> Tensor:
    """The mean over all workers, at least 1: a batch is then learnt from as if one worker had all of it."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(number)
        number = number / distributed.get_world_size()
    return number.clamp(min=1)


@torch.no_grad()
def matched(layers: Sequence[QueryPrediction], truths: Sequence[Truth], cell: int, rule: LossRule) -> list[Pairs]:
    """For each layer and image the pairs with the least costs in all.

    All costs are computed before the first assignment, which the processor makes: a GPU is waited for once.
    """
    costs = [
        costs_of(probabilities, masks, truth, cell, rule)
        for layer in layers
        for probabilities, masks, truth in zip(layer.class_logits.softmax(2), layer.mask_logits, truths, strict=True)
    ]
    pairs = assigned(costs)
    return [pairs[start : start + len(truths)] for start in range(0, len(pairs), len(truths))]


def costs_of(probabilities: Tensor, masks: Tensor, truth: Truth, cell: int, rule: LossRule) -> Tensor:
    """f32 [Q, S] of the queries of an image, with probabilities [Q, κ + 1] and masks [Q, h, w]."""
    mask, dice = rule.masks.costs(masks, truth, cell)
    return rule.mask_weight * mask - rule.class_weight * probabilities[:, truth.ranks] + rule.dice_weight * dice


def assigned(costs: Sequence[Tensor]) -> Pairs:
    """The pairs with the least sum, for each matrix f32 [Q, S]: min(Q, S) of them, no row and no column twice.

    Costs that are no numbers are the highest: training that has gone wrong is seen in its loss, not here.
    """
    from scipy.optimize import linear_sum_assignment

    device, highest = costs[0].device, torch.finfo(costs[0].dtype).max
    flat = torch.cat([each.flatten() for each in costs]).nan_to_num(highest, highest, highest).cpu()
    matrices = [part.view(each.shape) for part, each in zip(flat.split([c.numel() for c in costs]), costs, strict=True)]
    pairs = [linear_sum_assignment(matrix.numpy()) for matrix in matrices]
    return [(torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)) for rows, columns in pairs]


def layer_losses(
    layer: QueryPrediction, truths: Sequence[Truth], pairs: Pairs, cell: int, rule: LossRule, number: Tensor
) -> dict[str, Tensor]:
    """The three losses of a layer, without their weights."""
    logits = layer.class_logits
    nothing = logits.shape[2] - 1
    target = torch.full(logits.shape[:2], nothing, device=logits.device)
    learnt = [truth[chosen] for truth, (_, chosen) in zip(truths, pairs, strict=True)]
    for row, truth, (queries, _) in zip(target, learnt, pairs, strict=True):
        row[queries] = truth.ranks
    weight = logits.new_ones(nothing + 1)
    weight[nothing] = rule.no_object
    weights = weight[target].sum().clamp_min(torch.finfo(weight.dtype).tiny)  # none where "no object" weighs nothing
    masks = [own[queries] for own, (queries, _) in zip(layer.mask_logits, pairs, strict=True)]
    mask, dice = rule.masks.losses(masks, learnt, cell)
    return {
        "class_loss": F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight, reduction="sum") / weights,
        "mask_loss": mask / number,
        "dice_loss": dice / number,
    }


@torch.no_grad()
def kept_shares(segments: Sequence[Segments], truths: Sequence[Truth]) -> dict[str, Tensor]:
    """`kept` and `kept_segments`."""
    areas = [found.areas() for found in segments]
    wanted = torch.cat([each[~found.crowd] for each, found in zip(areas, segments, strict=True)])
    kept = torch.cat([each[truth.numbers.long() - 1] for each, truth in zip(areas, truths, strict=True)])
    share_of_segments = torch.tensor(len(kept) / max(1, len(wanted)), device=wanted.device)
    return {"kept": kept.sum() / wanted.sum().clamp(min=1), "kept_segments": share_of_segments}


@torch.no_grad()
def accuracy_of_cells(
    prediction: QueryPrediction, segments: Sequence[Segments], truths: Sequence[Truth], cell: int
) -> Tensor:
    """Share of the pixels in a segment (no crowd), one a cell, whose best rank is that of their label."""
    right = labelled = prediction.mask_logits.new_zeros(())
    shares = prediction.class_logits.softmax(2)[..., :-1]
    for own, masks, found, truth in zip(shares, prediction.mask_logits, segments, truths, strict=True):
        shown = begun_cells(masks, found.map, cell).sigmoid()
        best = torch.einsum("qk,qhw->khw", own, shown).argmax(0)
        rank_of = torch.full((len(found) + 1,), -1, device=best.device)
        rank_of[truth.numbers.long()] = truth.ranks
        numbers = found.map[::cell, ::cell].long()
        right = right + (best == rank_of[numbers]).sum()
        labelled = labelled + F.pad(~found.crowd, (1, 0), value=False)[numbers].sum()
    return right / labelled.clamp(min=1)
