"""What one pass over a split leaves: pixels, kept labels and presence scores of every image.

Legend: N images, K all labels, κ kept labels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kappaseg_core.metrics import ConfusionSums
from kappaseg_core.panoptic_quality import PanopticSums
from kappaseg_core.ranking import Ranking


class Tally:
    """Filled image by image with `add`.

    right, predicted, truth: i64 [N, K], pixels; those without a label in the truth count nowhere.
    kept: bool [N, K], the labels that the network chose among.   scores: f32 [N, K], presence scores.
    objects: the segments' sums, of a network that learns objects; whoever makes the pass adds to them.
    """

    def __init__(self, images: int, num_classes: int, objects: PanopticSums | None = None) -> None:
        self.images, self.num_classes, self.objects = images, num_classes, objects
        self.right, self.predicted, self.truth = torch.zeros(3, images, num_classes, dtype=torch.int64).unbind()
        self.kept = torch.zeros(images, num_classes, dtype=torch.bool)
        self.scores = torch.zeros(images, num_classes)

    def add(self, index: int, *, mask: Tensor, label_map: Tensor, ranking: Ranking, scores: Tensor) -> None:
        """Image `index`: mask, label_map i64 [H, W]; its ranking; scores f32 [K]."""
        image = ConfusionSums(self.num_classes)
        image.update(label_map, mask)
        self.right[index], self.predicted[index], self.truth[index] = image.right, image.predicted, image.truth
        self.kept[index, ranking.labels[ranking.valid]] = True
        self.scores[index] = scores

    def numbers(self) -> dict[str, Any]:
        """Measures of the split in 0..1 (NaN where nothing is to be measured), and by label in lists of K.

        mIoU … zero_iou_share: as stage2_segmentation.evaluate.Evaluation has them.   recall: labels kept / labels
        present; image_recall: the same per image, class_recall: per label, and then the mean.   pixel_coverage,
        class_coverage: share of the pixels whose label was kept, and its mean over labels, which no mIoU exceeds.
        panoptic: PanopticSums.summary, or None.
        """
        sums = ConfusionSums(self.num_classes)
        sums.right, sums.predicted, sums.truth = self.right.sum(0), self.predicted.sum(0), self.truth.sum(0)
        scores, present = sums.summary(), self.truth > 0
        hits, covered = (present & self.kept).double(), (self.truth * self.kept).double()
        recall, coverage = hits.sum(0) / present.sum(0), covered.sum(0) / self.truth.sum(0)
        by_image = hits.sum(1) / present.sum(1)
        return {
            "panoptic": None if self.objects is None else self.objects.summary(),
            "images": self.images, "mIoU": scores["mIoU"], "mIoU_in_truth": scores["mIoU_in_truth"],
            "pixel_accuracy": scores["pixel_accuracy"], "mean_class_accuracy": scores["class_accuracy"],
            "zero_iou_share": scores["zero_iou"], "labels_in_truth": scores["labels_in_truth"],
            "mean_kappa": self.kept.sum(1).double().mean().item(),
            "recall": (hits.sum() / present.sum()).item(), "image_recall": by_image.nanmean().item(),
            "class_recall": recall.nanmean().item(), "pixel_coverage": (covered.sum() / self.truth.sum()).item(),
            "class_coverage": coverage.nanmean().item(),
            "classes": {
                "val_images": present.sum(0).tolist(), "iou": sums.iou().tolist(), "recall": recall.tolist(),
                "coverage": coverage.tolist(),
            },
            "labels_per_image": histogram(present.sum(1).numpy()),
        }  # fmt: skip

    def ranked(self, index: int, ranks: int) -> dict[str, Any]:
        """The best labels of an image by its presence scores, best first, and whether the truth has them."""
        scores, labels = self.scores[index].sort(descending=True, stable=True)
        labels, scores = labels[:ranks], scores[:ranks]
        return {
            "labels": labels.tolist(), "scores": [round(score, 5) for score in scores.tolist()],
            "present": (self.truth[index, labels] > 0).tolist(), "missed": int((self.truth[index] > 0).sum())
            - int((self.truth[index, labels] > 0).sum()),
        }  # fmt: skip

    def sparse(self, image_ids: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The pixel counts without their zeros (intervals.ImageCounts)."""
        image, label = ((self.predicted > 0) | (self.truth > 0)).nonzero(as_tuple=True)
        columns = {"right": self.right, "predicted": self.predicted, "truth": self.truth}
        return {
            "image": image.numpy().astype(np.int32), "label": label.numpy().astype(np.int32),
            **{name: column[image, label].numpy() for name, column in columns.items()},
            "image_ids": np.array(image_ids), "num_classes": np.array(self.num_classes),
        }  # fmt: skip


def histogram(labels: NDArray[Any]) -> list[int]:
    """How many images have 0, 1, 2 … labels, from the number of labels [N] of each."""
    counts: list[int] = np.bincount(labels).tolist()
    return counts
