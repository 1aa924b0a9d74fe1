"""Images → label scores, in the one way that ranking, evaluation and the service share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kappaseg_core.placement import Placement
from kappaseg_core.progress import Meter
from kappaseg_core.structures import SceneSet
from stage1_multilabel.augment import EvalImages
from stage1_multilabel.classifier import Classifier

BATCH = 16


def scores_of(
    model: Classifier,
    scenes: SceneSet,
    rows: Sequence[int],
    image_size: int,
    here: Placement,
    *,
    batch_size: int = BATCH,
) -> Tensor:
    """Label scores f32 [N, K] of the scenes at `rows`, each worker doing its share (no image twice, none left out)."""
    images = EvalImages(image_size, model.backbone.mean, model.backbone.std)
    scores = torch.zeros(len(rows), model.num_classes)
    mine = list(range(here.worker, len(rows), here.world))
    with Meter(f"ranking {scenes.split}", len(mine), unit="image") as meter, torch.inference_mode():
        for start in range(0, len(mine), batch_size):
            group = mine[start : start + batch_size]
            batch = torch.stack([images.square(scenes.image(rows[row])) for row in group])
            batch = images.normalise(batch.to(here.device))
            with here.autocast():
                logits = model(batch)
            scores[group] = label_scores(logits).cpu()
            meter.advance(len(group))
    return here.total(scores.to(here.device)).cpu()


def label_scores(logits: Tensor) -> Tensor:
    """Probabilities as every ranking of the project uses them: sigmoid in fp32, rounded to half precision.

    Rounding before sorting (not after) keeps "descending scores, equal ones by label id" true of what is stored, and
    makes the ranking of an image the same alone and in a batch, up to differences that half precision can see.
    """
    return torch.sigmoid(logits.float()).half().float()
