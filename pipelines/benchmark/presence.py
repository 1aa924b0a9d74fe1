"""Which labels a scheme takes an image to hold: one score per label, and how far such scores can be trusted.

Legend: N images, K all labels, κ kept labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kappaseg_core.metrics import CoverageSums, average_precision, mean_average_precision
from kappaseg_core.placement import Placement
from kappaseg_core.ranking import complete_ranking, rank_lookup, top_kappa
from kappaseg_core.structures import Scene
from label_cache import LabelCache
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.evaluate import prepared
from stage2_segmentation.inference import Segmented
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.structures import QueryPrediction

#: κ of the curves, as far as there are as many scored labels
CURVE_KAPPAS = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 64, 75, 100, 150, 200, 256)
BINS = 10
#: labels of an image whose scores are held against the truth: as many as a cache stores, so that schemes compare
CALIBRATED = 256


@dataclass(frozen=True)
class Presence:
    """Scores f32 [K] of an image's labels, from the best that the scheme has.

    | of           | when                                                      | score                               |
    |--------------|-----------------------------------------------------------|-------------------------------------|
    | truth        | the ranking is the oracle's                               | 1 for the labels present, else 0    |
    | label cache  | the ranking is from a cache                               | the stored ones; others 0           |
    | label branch | the network has one                                       | of the image, by the network        |
    | pixel scores | it has none, and chooses among all K labels               | the label's largest softmax share   |
    |              |                                                           | (of queries: score) over the cells  |
    |              |                                                           | of the whole image                  |
    | ranking      | anything else                                             | of the labels kept; others 0        |

    ranks: labels of an image that have a score of their own.
    """

    of: str
    ranks: int
    num_classes: int
    model: SegmentationModel
    config: Stage2Config
    here: Placement
    cache: LabelCache | None = None

    @classmethod
    def of_run(cls, model: SegmentationModel, config: Stage2Config, num_classes: int, here: Placement) -> Presence:
        """What a run, evaluated with `config`, has to say on presence."""
        test, cache, ranks = config.source.at_test, None, num_classes
        if test == "oracle":
            of = "truth"
        elif test == "cache":
            of, cache = "label cache", LabelCache.open(Path(config.source.cache or Path(config.out) / "labels"))
            ranks = cache.k
        elif model.branch is not None:
            of = "label branch"
        else:
            of = "pixel scores" if test == "complete" else "ranking"
        return cls(of, ranks, num_classes, model, config, here, cache)

    def __call__(self, scene: Scene, present: Tensor, found: Segmented) -> Tensor:
        """Scores of one image. present: bool [K].   found: what the network has made of the image."""
        if self.of == "truth":
            return present.float()
        if self.of == "label branch":
            assert found.label_scores is not None
            return found.label_scores.float()
        if self.of == "pixel scores":
            return self.largest_shares(torch.from_numpy(scene.image))
        if self.cache is not None:
            stored = self.cache.lookup(scene.image_id)
            labels, scores = torch.from_numpy(stored.labels).long(), torch.from_numpy(stored.scores)
        else:
            labels, scores = found.ranking.labels, found.ranking.scores * found.ranking.valid
        table = torch.zeros(self.num_classes)
        return table.scatter_reduce(0, labels[0], scores[0].float(), "amax")

    def largest_shares(self, image: Tensor) -> Tensor:
        """The largest softmax share that each label gets in any cell of an image u8 [3, H, W], seen whole; of a mask
        network the largest score, up to 1."""
        image = prepared(self.model, image, self.config.inference, self.here)
        everything = complete_ranking(1, self.num_classes, self.here.device)
        with torch.inference_mode(), self.here.autocast():
            found = self.model(image[None], everything)
        if isinstance(found, QueryPrediction):
            classes, masks = found.class_logits.float().softmax(2)[0, :, :-1], found.mask_logits.float().sigmoid()[0]
            return torch.einsum("qk,qhw->khw", classes, masks).amax((1, 2)).clamp(max=1).cpu()
        return found.rank_logits.float().softmax(1).amax((2, 3))[0].cpu()


def presence_quality(scores: Tensor, pixels: Tensor, ranks: int) -> dict[str, Any]:
    """How well scores f32 [N, K] tell the labels present; pixels i64 [N, K]: of each label in each image.

    mAP_raw, mAP_envelope: kappaseg_core.metrics.average_precision; per label: ap_raw, ap_envelope.
    curves: recall, pixel and class coverage of the first κ labels by these scores, κ up to `ranks`.
    """
    numbers: dict[str, Any] = {}
    for definition in ("raw", "envelope"):
        per_class = average_precision(scores, pixels > 0, definition=definition)
        numbers[f"mAP_{definition}"], numbers["mAP_labels"] = mean_average_precision(per_class)
        numbers[f"ap_{definition}"] = per_class.tolist()
    kappas = [kappa for kappa in CURVE_KAPPAS if kappa < ranks] + [ranks]
    sums = CoverageSums(scores.shape[1], kappas)
    sums.update(pixels, rank_lookup(top_kappa(scores, ranks), scores.shape[1]))
    found = sums.summary()
    measures = ("recall", "pixel_coverage", "class_recall", "class_coverage")
    curves = {measure: [found[f"{measure}@{kappa}"] for kappa in kappas] for measure in measures}
    return {
        **numbers,
        "curves": {"kappa": kappas, **curves},
        "calibration": calibration(scores, pixels > 0, min(ranks, CALIBRATED)),
    }


def calibration(scores: Tensor, present: Tensor, ranks: int) -> dict[str, Any]:
    """Reliability of scores f32 [N, K] as probabilities that a label is present, bool [N, K].

    The pairs of image and label that have a score of their own (the best `ranks` labels of each image) fall into BINS
    equally wide bins; a bin has their number, mean score and share present. error: the expected calibration error,
    Σ_b n_b / n · |mean score - share present| (Naeini et al. 2015).
    """
    kept, order = scores.topk(min(ranks, scores.shape[1]), dim=1)
    score, hit = kept.flatten().double(), present.gather(1, order).flatten().double()
    bin_of = (score * BINS).long().clamp(max=BINS - 1)
    count, total, hits = (torch.bincount(bin_of, weight, BINS) for weight in (torch.ones_like(score), score, hit))
    bins = [
        {"bin": place, "count": int(n), "score": (t / n).item(), "observed": (h / n).item()}
        for place, (n, t, h) in enumerate(zip(count, total, hits, strict=True))
        if n
    ]
    error = sum(b["count"] * abs(b["score"] - b["observed"]) for b in bins) / max(1, len(score))
    return {"error": error, "pairs": len(score), "bins": bins}
