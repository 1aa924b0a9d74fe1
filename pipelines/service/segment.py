"""The segmentation network of a service."""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from kappaseg_core.checkpoint import run_fingerprint
from kappaseg_core.errors import UserError
from kappaseg_core.placement import Placement
from kappaseg_core.ranking import OwnRanking, Ranking, complete_ranking
from pipelines.service.classify import placement
from pipelines.service.config import ServeConfig
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.evaluate import load_segmentation, segment_image
from stage2_segmentation.inference import Segmented
from stage2_segmentation.model import SegmentationModel


@dataclass(frozen=True)
class ServedSegmenter:
    """Images u8 [3, H, W] and rankings → label maps."""

    model: SegmentationModel
    config: Stage2Config
    class_names: tuple[str, ...]
    here: Placement
    version: str
    about: dict[str, Any]

    @classmethod
    def load(cls, config: ServeConfig, run: Path) -> ServedSegmenter:
        """The network of a run directory, warmed up. Raises UserError."""
        here = placement(config)
        model, settings, class_names = load_segmentation(run)
        about = {
            "run": run.resolve().name, "backbone": settings.backbone.name, "host": settings.host.kind,
            "branch": settings.labels.head, "kappa": settings.source.kept(len(class_names), at_test=True),
            "device": str(here.device), "precision": config.precision,
        }  # fmt: skip
        served = cls(model.to(here.device), settings, class_names, here, run_fingerprint(run), about)
        if served.kappa > len(class_names):
            raise UserError(f"run {run} keeps κ = {served.kappa} of {len(class_names)} classes; evaluate it with fewer")
        served.segment(np.zeros((3, 64, 64), np.uint8), complete_ranking(1, len(class_names)).top(served.kappa))
        return served

    @property
    def kappa(self) -> int:
        """Labels kept where a request does not say how many."""
        return self.config.source.kept(len(self.class_names), at_test=True)

    @property
    def ranks_itself(self) -> bool:
        return self.model.branch is not None

    @property
    def wants(self) -> str:
        """The source of rankings that it was made for: joint, complete, or another, for which the classifier stands."""
        return self.config.source.at_test

    def segment(self, image: NDArray[Any], ranking: Ranking | OwnRanking) -> Segmented:
        """One image u8 [3, H, W], segmented at its own size among the labels of its ranking."""
        return segment_image(self.model, torch.from_numpy(image), ranking, self.config.inference, self.here)


def without(ranking: Ranking, labels: Collection[int]) -> Ranking:
    """The ranking of one image with some labels taken out; those behind them move up."""
    if not labels:
        return ranking
    kept = ~torch.isin(ranking.labels[0], torch.tensor(list(labels)))
    return Ranking(ranking.labels[:, kept], ranking.scores[:, kept], ranking.valid[:, kept])


def narrow(label_map: torch.Tensor, num_classes: int) -> NDArray[Any]:
    """A label map i64 [H, W] in as few bytes as its labels need: several may wait to be encoded."""
    kind = np.uint8 if num_classes <= 2**8 else np.uint16 if num_classes <= 2**16 else np.uint32
    return label_map.numpy().astype(kind)


def label_map_png(found: NDArray[Any], encoding: str) -> bytes:
    """A label map u8, u16 or u32 [H, W] (see `narrow`) as a PNG.

    grey: the ids, in 8 bits for up to 256 labels, else in 16.   rgb: id = R + 256 G + 65536 B, which a browser can
    read (its canvas has 8 bits).
    """
    if encoding == "rgb":
        picture = Image.fromarray(np.stack([(found >> shift).astype(np.uint8) for shift in (0, 8, 16)], -1))
    else:
        picture = Image.fromarray(found)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
