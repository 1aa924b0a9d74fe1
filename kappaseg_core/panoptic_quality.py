"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019, Eq. 1), with the rules of panopticapi.

    PQ = Σ IoU of matched pairs / (TP + FP/2 + FN/2) = SQ · RQ          per label, then the mean over labels

A predicted and a true segment of one label match where their IoU is above 0.5; there can be one such pair for each.

    void     pixels that the truth leaves VOID do not count in the union, so not against a prediction that covers them
    crowd    a true crowd segment is never matched and never missed
    ignored  an unmatched prediction is no FP where more than half of it lies on void and on the crowd of its label

Where the truth has several crowd segments of one label, the last one listed counts, as in panopticapi. Areas are those
of the maps (panopticapi: those that its JSON file says of the truth, which are the same in COCO).
(torchmetrics: also ignores true segments that the prediction leaves void for more than half, and pixels that the
prediction leaves void. Here, as in panopticapi, a missed segment is missed.)

Legend: H W pixels, K labels, S true and P predicted segments of an image. Sums are K numbers, pairs S x P per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from kappaseg_core.metrics import Reduce, all_reduced
from kappaseg_core.segments import Segments


class PanopticSums:
    """TP, FP, FN and the IoU of the matched pairs of every label, added up over images and workers."""

    def __init__(self, things: Sequence[bool], device: torch.device | str = "cpu") -> None:
        self.things = tuple(things)
        self.iou = torch.zeros(len(things), dtype=torch.float64, device=device)
        self.matched, self.extra, self.missed = torch.zeros(
            3, len(things), dtype=torch.int64, device=device
        ).unbind()  # TP, FP, FN

    def update(self, prediction: Segments, truth: Segments) -> None:
        """Add an image: the segments found and the true ones, of one size."""
        pairs = pixels_of_pairs(prediction, truth)
        same_label = truth.labels[:, None] == prediction.labels
        true_area, area, both, void = pairs.sum(1)[1:, None], pairs.sum(0)[1:], pairs[1:, 1:], pairs[0, 1:]
        union = true_area + area - both - void
        match = same_label & ~truth.crowd[:, None] & (2 * both > union)
        found, right = match.any(1), match.any(0)
        ignored = void + on_crowd(pairs, same_label & truth.crowd[:, None])
        true, predicted = match.nonzero().unbind(1)
        self.iou.index_add_(0, truth.labels[true], both[true, predicted].double() / union[true, predicted])
        self._count(self.matched, truth.labels[true])
        self._count(self.missed, truth.labels[~found & ~truth.crowd])
        self._count(self.extra, prediction.labels[~right & ~(2 * ignored > area)])

    def _count(self, total: Tensor, labels: Tensor) -> None:
        total += torch.bincount(labels, minlength=len(total))

    def reduced(self, reduce: Reduce) -> Self:
        """The sums of all workers together."""
        return all_reduced(self, reduce)

    def quality(self) -> Tensor:
        """PQ, SQ and RQ of every label, f64 [3, K]; NaN for a label that is in no segment, true or predicted.

        A label of which nothing matches has SQ 0.
        """
        matched = self.matched.double()
        of = matched + (self.extra + self.missed) / 2
        segmentation = self.iou / matched.clamp(min=1)
        absent = torch.where(of == 0, torch.nan, 0.0)
        return torch.stack([self.iou / of, segmentation + absent, matched / of])

    def summary(self) -> dict[str, float | int]:
        """The means over labels that are in some segment, in 0..1: PQ, SQ, RQ; the same of things and of stuff, like
        "PQ_things"; "labels", how many they are. NaN where there is none. "found", predicted segments that count."""
        quality = self.quality()
        things = torch.tensor(self.things, device=quality.device)
        values: dict[str, float | int] = {"found": int((self.matched + self.extra).sum())}
        for group, chosen in (("", torch.ones_like(things)), ("_things", things), ("_stuff", ~things)):
            means = quality[:, chosen].nanmean(1).tolist()
            values |= {f"{name}{group}": mean for name, mean in zip(("PQ", "SQ", "RQ"), means, strict=True)}
            values[f"labels{group}"] = int((~quality[0, chosen].isnan()).sum())
        return values


def pixels_of_pairs(prediction: Segments, truth: Segments) -> Tensor:
    """Pixels that are in both, i64 [S + 1, P + 1]; row and column 0 are VOID. One count over the pixels."""
    rows, columns = len(truth) + 1, len(prediction) + 1
    index = truth.map.flatten().long() * columns + prediction.map.flatten()
    return torch.bincount(index, minlength=rows * columns).view(rows, columns)


def on_crowd(pairs: Tensor, crowd_of: Tensor) -> Tensor:
    """Pixels of each prediction on the crowd of its label, i64 [P].

    crowd_of: bool [S, P], whether a true segment is a crowd of the prediction's label; of several the last counts.
    """
    number = torch.arange(1, len(crowd_of) + 1, device=pairs.device)[:, None]
    last = torch.cat([number.new_zeros(1, crowd_of.shape[1]), crowd_of * number]).amax(0)
    return torch.where(last > 0, pairs[:, 1:].gather(0, last[None])[0], 0)
