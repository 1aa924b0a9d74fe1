"""A finished classifier on images that no data set holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from kappaseg_core.ranking import Ranking, top_kappa
from stage1_multilabel.augment import EvalImages
from stage1_multilabel.classifier import Classifier
from stage1_multilabel.rank import Ranker
from stage1_multilabel.scoring import label_scores


@dataclass(frozen=True)
class LiveClassifier:
    """Image u8 [3, H, W] → the ranking of its κ best labels, in the way that a label cache is filled."""

    model: Classifier
    images: EvalImages
    kappa: int
    device: torch.device

    @classmethod
    def of(cls, ranker: Ranker, kappa: int, device: torch.device) -> LiveClassifier:
        model = ranker.load(device)
        images = EvalImages(ranker.config.augment.image_size, model.backbone.mean, model.backbone.std)
        return cls(model, images, kappa, device)

    def __call__(self, image: NDArray[Any]) -> Ranking:
        with torch.inference_mode():
            logits = self.model(self.images(image)[None].to(self.device))
        return top_kappa(label_scores(logits).cpu(), self.kappa)
