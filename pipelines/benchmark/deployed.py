"""A scheme as it is used on a new image: a network, and where it does not rank by itself the classifier before it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kappaseg_core.cost import Cost, count
from kappaseg_core.placement import Placement
from kappaseg_core.ranking import OwnRanking, Ranking
from pipelines.evaluate import opened
from stage1_multilabel.live import LiveClassifier
from stage1_multilabel.rank import Ranker
from stage2_segmentation.config import InferenceConfig
from stage2_segmentation.evaluate import segment_image
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.sources import scene_ranking

SAMPLE = 8  # images of the validation split


@dataclass(frozen=True)
class Deployed:
    """A finished run, some images of its validation split, and what its test source says of each.

    rows: of the images in the split.   images: u8 [3, H, W] each, decoded.   rankings: of each, as in evaluation (from
    the cache, from the truth, …).
    classifier: what a new image would be ranked with; None where the network needs none, or none can be had.
    """

    model: SegmentationModel
    inference: InferenceConfig
    here: Placement
    rows: list[int]
    images: list[Tensor]
    rankings: list[Ranking | OwnRanking]
    classifier: LiveClassifier | None

    @classmethod
    def load(cls, run: Path, classifier: Path | None, rows: Sequence[int] | None = None) -> Deployed:
        """rows: of the images in the validation split; None = up to eight, spread evenly over it."""
        found = opened(run)
        rows = spread(len(found.scenes)) if rows is None else list(rows)
        chosen, device = [found.scenes[row] for row in rows], found.here.device
        return cls(
            found.model, found.config.inference, found.here, rows,
            [torch.from_numpy(scene.image) for scene in chosen],
            [scene_ranking(found.source, scene) for scene in chosen],
            None if classifier is None else LiveClassifier.of(
                Ranker.of(classifier), found.kappa, Placement(device=device)
            ),
        )  # fmt: skip

    def use(self, index: int) -> tuple[float, float]:
        """Seconds of the classifier (0 without one) and of the network for an image, resizing and upsampling included.

        The network gets the ranking that evaluation gives it, so that the two can be told apart.
        """
        started = time.perf_counter()
        if self.classifier is not None:
            self.classifier(self.images[index].numpy())
        ranked = time.perf_counter()
        self.segment(index)
        return ranked - started, time.perf_counter() - ranked

    def segment(self, index: int) -> None:
        segment_image(self.model, self.images[index], self.rankings[index], self.inference, self.here)

    def costs(self, index: int) -> tuple[Cost, Cost | None]:
        """Of the network and of the classifier, for an image."""
        network = count(self.model, lambda: self.segment(index))
        classifier = self.classifier
        if classifier is None:
            return network, None
        return network, count(classifier.model, lambda: classifier(self.images[index].numpy()))


def spread(images: int) -> list[int]:
    """Up to eight rows of a split, evenly spread over it."""
    count = min(SAMPLE, images)
    return [number * images // count for number in range(count)]
