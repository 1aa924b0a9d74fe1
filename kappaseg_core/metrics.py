"""Numbers of an evaluation: average precision, coverage of a ranking, mIoU.

Legend: N or B images, K all labels, κ kept labels, H W pixels. Sums are int64 or float64, stay on the device they were
made on, add up over batches by `update` and over workers by `reduced`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Literal, Self, TypeVar, get_args

import torch
from torch import Tensor

from kappaseg_core.ranking import IGNORE, Ranking, top_kappa

#: Adds a tensor up over all workers (Placement.total); the identity for one process.
Reduce = Callable[[Tensor], Tensor]
Curve = Literal["recall", "image_recall", "pixel_coverage", "image_coverage"]

ELEMENTS_AT_ONCE = 2**22  # scores sorted together; about 300 MB with all that is derived from them


def average_precision(
    scores: Tensor, targets: Tensor, *, definition: Literal["envelope", "raw"] = "envelope"
) -> Tensor:
    """Average precision f64 [K] of every label over the images, in 0..1; NaN for a label that no image has.

    scores: f32 [N, K], targets: bool [N, K].
    raw: mean of the precisions at the positives (ASL, ML-Decoder, RAM; scikit-learn).
    envelope: precision is first raised to its best value at any higher recall (VOC 2010 and later;
    Query2Label, RankSeg). Higher than raw, for rare labels by up to a point of 100: say which one a number is.

    Images with equal scores count as retrieved together, so the order of the images does not matter. (release: in the
    order a sort happens to leave them. The same where no scores are equal.) Scores that do not differ between images,
    such as a frequency prior's, give each label its share of positive images, in both definitions.
    """
    at_once = max(1, ELEMENTS_AT_ONCE // max(1, len(scores)))
    chunks = zip(scores.split(at_once, dim=1), targets.split(at_once, dim=1), strict=True)
    return torch.cat([average_precision_of(*chunk, definition == "envelope") for chunk in chunks])


def average_precision_of(scores: Tensor, targets: Tensor, envelope: bool) -> Tensor:
    """The same for labels few enough to be sorted at once."""
    images, positives = len(scores), targets.sum(0)
    if images == 0:
        return torch.full(positives.shape, torch.nan, dtype=torch.float64, device=scores.device)
    ordered, order = scores.sort(dim=0, descending=True)
    hits = targets.gather(0, order)
    place = torch.arange(1, images + 1, device=scores.device)[:, None]
    precision = hits.cumsum(0).double() / place
    last = torch.ones_like(hits)  # of the images with its score
    last[:-1] = ordered[1:] != ordered[:-1]
    end = torch.where(last, place - 1, images - 1).flip(0).cummin(0).values.flip(0)
    precision = precision.gather(0, end)
    if envelope:
        precision = precision.flip(0).cummax(0).values.flip(0)
    return (precision * hits).sum(0) / positives  # 0 / 0 = NaN: no positives


def mean_average_precision(per_class: Tensor) -> tuple[float, int]:
    """mAP in 0..1 over the labels that have positives, and how many they are (NaN, 0 where none has)."""
    return per_class.nanmean().item(), int((~per_class.isnan()).sum())


def frequency_prior(train_counts: Tensor, images: int) -> Ranking:
    """The baseline that looks at no image: all K labels by how many training images hold them, the same for all.

    train_counts: i64 [K]. Scores are relative to the most frequent label. Equal counts in order of label id.
    """
    share = train_counts.double() / train_counts.max().clamp(min=1)
    return top_kappa(share.expand(images, -1), len(train_counts))


def label_pixels(mask: Tensor, num_classes: int) -> Tensor:
    """Pixels of every label: mask i64 [B, H, W] (IGNORE allowed) → i64 [B, K]."""
    width = num_classes + 1  # column 0 takes IGNORE
    first = torch.arange(len(mask), device=mask.device)[:, None] * width + 1
    counts = torch.bincount((mask.flatten(1) + first).flatten(), minlength=len(mask) * width)
    return counts.view(len(mask), width)[:, 1:]


class CoverageSums:
    """How much of the truth the first κ ranks hold: upper bounds of what stage two can reach.

    | at κ           | what                                                                        |
    |----------------|-----------------------------------------------------------------------------|
    | recall         | labels kept / labels present, all images together (micro)                   |
    | image_recall   | the same per image, mean over images that have a label                      |
    | class_recall   | the same per label, mean over labels that some image has                    |
    | pixel_coverage | pixels of kept labels / labelled pixels; bounds the pixel accuracy          |
    | image_coverage | the same per image, mean over images that have a label                      |
    | class_coverage | the same per label, mean over labels that some image has; bounds the mIoU   |

    The bound: IoU_c = TP / (TP + FP + FN) ≤ TP / truth ≤ coverage_c for every label in the truth, hence
    mIoU ≤ class_coverage; a label that is predicted but nowhere in the truth has IoU 0 and lowers only the left side.

    Micro and image values are kept for every κ (4 histograms over ranks); those per label, which would take K x K, for
    the given `kappas` (beyond K is as K). A label outside the ranking counts as missed at every κ, so values beyond
    the κ of the ranking stay at what it has.
    """

    def __init__(self, num_classes: int, kappas: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.num_classes, self.kappas = num_classes, tuple(kappas)
        # by rank; last column: missed
        self.label_ranks = torch.zeros(num_classes + 1, dtype=torch.int64, device=device)
        self.pixel_ranks = torch.zeros_like(self.label_ranks)
        self.image_ranks = torch.zeros_like(self.label_ranks, dtype=torch.float64)
        self.image_pixel_ranks = torch.zeros_like(self.image_ranks)
        # by κ and label; last row: all
        self.class_labels = torch.zeros(len(self.kappas) + 1, num_classes, dtype=torch.int64, device=device)
        self.class_pixels = torch.zeros_like(self.class_labels)

    def update(self, pixels: Tensor, ranks: Tensor) -> None:
        """Add images: pixels i64 [B, K] (label_pixels), ranks i64 [B, K] (rank_lookup; IGNORE = not kept)."""
        ranks = torch.where(ranks == IGNORE, self.num_classes, ranks)
        present = (pixels > 0).long()
        by_label = (present, self.label_ranks, self.image_ranks)
        by_pixel = (pixels, self.pixel_ranks, self.image_pixel_ranks)
        for weight, ranked, by_image in (by_label, by_pixel):
            share = weight / weight.sum(1, keepdim=True).clamp(min=1).double()
            ranked.scatter_add_(0, ranks.flatten(), weight.flatten())
            by_image.scatter_add_(0, ranks.flatten(), share.flatten())
        for row, kappa in enumerate(self.kappas):
            kept = ranks < min(kappa, self.num_classes)
            self.class_labels[row] += (present * kept).sum(0)
            self.class_pixels[row] += (pixels * kept).sum(0)
        self.class_labels[-1] += present.sum(0)
        self.class_pixels[-1] += pixels.sum(0)

    def reduced(self, reduce: Reduce) -> Self:
        """The sums of all workers together."""
        return all_reduced(self, reduce)

    def curve(self, measure: Curve) -> Tensor:
        """The measure at κ = 1..K, f64 [K]; NaN where there is no truth at all."""
        ranked = {
            "recall": self.label_ranks, "image_recall": self.image_ranks,
            "pixel_coverage": self.pixel_ranks, "image_coverage": self.image_pixel_ranks,
        }  # fmt: skip
        kept = ranked[measure].double().cumsum(0)
        return kept[:-1] / kept[-1]

    def class_recall(self, kappa: int) -> Tensor:
        """Per label, images that keep it / images that have it, f64 [K]; NaN for a label that no image has."""
        return self.class_labels[self.kappas.index(kappa)].double() / self.class_labels[-1]

    def class_coverage(self, kappa: int) -> Tensor:
        """Per label, pixels in images that keep it / pixels, f64 [K]; NaN for a label that no image has."""
        return self.class_pixels[self.kappas.index(kappa)].double() / self.class_pixels[-1]

    def kappa_for(self, coverage: float) -> int | None:
        """The smallest κ whose pixel coverage reaches this share; None where even the whole ranking does not."""
        enough = (self.curve("pixel_coverage") >= coverage).nonzero()
        return int(enough[0]) + 1 if len(enough) else None

    def summary(self) -> dict[str, float | int | None]:
        """Every measure at every one of `kappas` as "measure@κ", and "kappa_99", the κ for 99 % of the pixels."""
        values: dict[str, float | int | None] = {}
        for kappa in self.kappas:
            for measure in get_args(Curve):
                values[f"{measure}@{kappa}"] = self.curve(measure)[min(kappa, self.num_classes) - 1].item()
            values[f"class_recall@{kappa}"] = self.class_recall(kappa).nanmean().item()
            values[f"class_coverage@{kappa}"] = self.class_coverage(kappa).nanmean().item()
        return values | {"kappa_99": self.kappa_for(0.99)}


class ConfusionSums:
    """Pixels right, predicted and true of every label: 3 K numbers, where a confusion matrix would take K x K.

    Pixels without a label (target IGNORE) do not count. A prediction of IGNORE is wrong and counts for no label.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.right, self.predicted, self.truth = torch.zeros(3, num_classes, dtype=torch.int64, device=device).unbind()

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add pixels: prediction and target i64 of one shape, label ids or IGNORE."""
        known = torch.where(target == IGNORE, IGNORE, prediction)
        hit = torch.where(prediction == target, target, IGNORE)
        sums = (self.right, hit), (self.predicted, known), (self.truth, target)
        for total, ids in sums:
            total += label_pixels(ids.reshape(1, -1), self.num_classes)[0]

    def reduced(self, reduce: Reduce) -> Self:
        """The sums of all workers together."""
        return all_reduced(self, reduce)

    def iou(self) -> Tensor:
        """TP / (TP + FP + FN) of every label, f64 [K]; NaN where it is neither predicted nor in the truth."""
        return self.right.double() / (self.predicted + self.truth - self.right)

    def class_accuracy(self) -> Tensor:
        """TP / true pixels of every label, f64 [K]; NaN where it is not in the truth."""
        return self.right.double() / self.truth

    def absent(self) -> list[int]:
        """Labels without a pixel in the truth."""
        return (self.truth == 0).nonzero().flatten().tolist()

    def summary(self) -> dict[str, float | int]:
        """mIoU and what stands beside it, in 0..1 (NaN where nothing was added).

        mIoU: over labels that are predicted or in the truth, as mmsegmentation reports it; one that is predicted but
        nowhere in the truth counts as 0. mIoU_in_truth: over labels in the truth. Neither exceeds the class coverage
        of the ranking that the predictions were limited to (CoverageSums). zero_iou: share of the labels in the truth
        whose IoU is 0.
        """
        iou, seen = self.iou(), self.truth > 0
        return {
            "mIoU": iou.nanmean().item(),
            "mIoU_in_truth": iou[seen].mean().item(),
            "pixel_accuracy": (self.right.sum().double() / self.truth.sum()).item(),
            "class_accuracy": self.class_accuracy().nanmean().item(),
            "zero_iou": (iou[seen] == 0).double().mean().item(),
            "labels_in_truth": int(seen.sum()),
            "labels_absent": len(self.absent()),
        }


Sums = TypeVar("Sums")


def all_reduced(sums: Sums, reduce: Reduce) -> Sums:
    """A copy whose tensors have been added up over all workers."""
    total = copy(sums)
    for name, value in vars(sums).items():
        if isinstance(value, Tensor):
            setattr(total, name, reduce(value.clone()))
    return total


def known(value: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value
