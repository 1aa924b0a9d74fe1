"""How good a classifier's rankings are, beside the baseline that ranks by frequency and looks at no image."""

from __future__ import annotations

import math

import torch
from numpy.typing import NDArray
from torch import Tensor

from kappaseg_core.metrics import CoverageSums, average_precision, frequency_prior, mean_average_precision
from kappaseg_core.ranking import rank_lookup, top_kappa

KAPPAS = (5, 10, 20, 25, 50, 100)

#: What checkpoints are selected on. Coverage is what stage two can use; mAP compares images within a label, and does
#: not change when one label's scores are shifted against another's (facts of a ranking that it cannot see).
SELECTION_METRIC = "mean_class_coverage"


def ranking_quality(
    scores: Tensor, truth: NDArray, train_truth: NDArray, *, shortlist: int | None = None
) -> dict[str, float]:
    """Flat numbers in 0..1 (κ for 99 % in ranks).

    scores: f32 [N, K].   truth, train_truth: pixels per label [N, K], [M, K].

    mAP_envelope, mAP_raw: over the `mAP_labels` labels with a positive image (average_precision says which is which).
    recall@κ, pixel_coverage@κ, class_coverage@κ: see CoverageSums.   prior_…: the same of the frequency prior.
    prior_mAP: a score that is the same for every image orders the images of a label by chance, which comes to the share
    of images that hold it.
    mean_class_coverage: class_coverage averaged over the reported κ.
    shortlist_recall: share of the labels present that a head with a short-list of so many labels has picked, which are
    its first ranks; only with one.
    """
    pixels = torch.from_numpy(truth).long()
    num_classes = scores.shape[1]
    kappas = [kappa for kappa in KAPPAS if kappa < num_classes] or [1]
    numbers: dict[str, float] = {}
    for definition in ("envelope", "raw"):
        value, labels = mean_average_precision(average_precision(scores, pixels > 0, definition=definition))
        numbers[f"mAP_{definition}"] = value
    numbers["mAP_labels"] = float(labels)
    present = (pixels > 0).float().mean(0)
    numbers["prior_mAP"] = float(present[present > 0].mean())
    count = torch.from_numpy((train_truth > 0).sum(0)).long()
    rankings = {"": top_kappa(scores, num_classes), "prior_": frequency_prior(count, len(scores))}
    for name, ranking in rankings.items():
        sums = CoverageSums(num_classes, kappas)
        sums.update(pixels, rank_lookup(ranking, num_classes))
        found = sums.summary()
        covered = [value for key, value in found.items() if key.startswith("class_coverage@") and value is not None]
        numbers[f"{name}mean_class_coverage"] = sum(covered) / len(covered)
        shown = ("recall@", "pixel_coverage@", "class_coverage@", "kappa_99")
        numbers |= {
            f"{name}{key}": math.nan if v is None else float(v) for key, v in found.items() if key.startswith(shown)
        }
    if shortlist is not None:
        sums = CoverageSums(num_classes, [shortlist])
        sums.update(pixels, rank_lookup(rankings[""], num_classes))
        recall = sums.summary()[f"recall@{shortlist}"]
        numbers["shortlist_recall"] = math.nan if recall is None else float(recall)
    return numbers
