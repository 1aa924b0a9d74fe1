"""The live classifier of a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kappaseg_core.checkpoint import run_fingerprint
from kappaseg_core.config import LoopConfig
from kappaseg_core.placement import Placement, place
from kappaseg_core.ranking import Ranking
from pipelines.service.config import ServeConfig
from stage1_multilabel.live import LiveClassifier
from stage1_multilabel.rank import Ranker


@dataclass(frozen=True)
class ServedClassifier:
    """Images u8 [3, H, W] → rankings of all K labels, as a label cache has them."""

    live: LiveClassifier
    class_names: tuple[str, ...]
    version: str
    about: dict[str, Any]

    @classmethod
    def load(cls, config: ServeConfig, run: Path) -> ServedClassifier:
        """The classifier of a run directory, warmed up. Raises UserError."""
        here = placement(config)
        ranker = Ranker.of(run)
        live = LiveClassifier.of(ranker, len(ranker.class_names), here)
        settings = ranker.config
        about = {
            "run": run.resolve().name, "backbone": settings.backbone.name, "head": settings.head.preset,
            "image_size": settings.augment.image_size, "device": str(here.device), "precision": config.precision,
        }  # fmt: skip
        served = cls(live, ranker.class_names, run_fingerprint(run), about)
        size = settings.augment.image_size
        served.rank([served.prepare(np.zeros((3, size, size), np.uint8))] * config.batching.size)
        return served

    def prepare(self, image: NDArray[Any]) -> Tensor:
        """An image as the classifier takes it: u8 [3, S, S], still to be normalised."""
        return self.live.prepared(image)

    def rank(self, images: Sequence[Tensor]) -> list[Ranking]:
        """The complete ranking of each prepared image."""
        found = self.live.rank(torch.stack(list(images)))
        return [found[index : index + 1] for index in range(len(images))]


def placement(config: ServeConfig) -> Placement:
    """Where the networks of a service run. Raises UserError for a device that is not there."""
    return place(LoopConfig(device=config.device, precision=config.precision))
