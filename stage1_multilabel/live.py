"""A finished classifier on images that no data set holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from kappaseg_core.placement import Placement
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
    here: Placement

    @classmethod
    def of(cls, ranker: Ranker, kappa: int, here: Placement) -> LiveClassifier:
        model = ranker.load(here.device)
        images = EvalImages(ranker.config.augment.image_size, model.backbone.mean, model.backbone.std)
        return cls(model, images, kappa, here)

    def __call__(self, image: NDArray[Any]) -> Ranking:
        return self.rank(self.prepared(image)[None])

    def prepared(self, image: NDArray[Any]) -> Tensor:
        """An image of any size as the classifier takes it, u8 [3, S, S], still to be normalised."""
        return self.images.square(image)

    def rank(self, images: Tensor) -> Ranking:
        """The rankings of prepared images u8 [B, 3, S, S]."""
        with torch.inference_mode(), self.here.autocast():
            logits = self.model(self.images.normalise(images.to(self.here.device)))
        return top_kappa(label_scores(logits).cpu(), self.kappa)
