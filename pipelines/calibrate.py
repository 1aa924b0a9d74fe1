"""`kappaseg evaluate --alpha A`: κ per image, chosen so that at most the share A of the pixels is lost (ours).

Labels with a score of at least a threshold are kept; the threshold comes from images that neither classifier nor
network was trained on, and is judged on others (kappaseg_core/conformal.py has the rule and what it promises).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kappaseg_core.conformal import Calibration, calibrate
from kappaseg_core.errors import UserError
from kappaseg_core.label_counts import folds_of, label_counts
from kappaseg_core.placement import Placement
from kappaseg_core.progress import Meter
from kappaseg_core.ranking import OwnRanking, Ranking
from kappaseg_core.scenes import open_scenes
from kappaseg_core.scenes.subset import Subset
from kappaseg_core.structures import SceneSet
from label_cache import LabelCache
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.evaluate import label_ranking
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.sources import Source, scene_ranking
from stage2_segmentation.train import source_for


@dataclass(frozen=True)
class Calibrated:
    """A source cut to the labels that a calibration keeps."""

    source: Source
    calibration: Calibration
    fingerprint: str

    def __call__(
        self, image_ids: Sequence[str], mask: Tensor | None, image: Tensor | None = None
    ) -> Ranking | OwnRanking:
        found = self.source(image_ids, mask, image)
        if isinstance(found, OwnRanking):
            return replace(found, keep=self.calibration.keep)
        return self.calibration.keep(found)


def calibrated_source(
    model: SegmentationModel,
    config: Stage2Config,
    scenes: SceneSet,
    *,
    alpha: float,
    split: str | None,
    here: Placement,
) -> tuple[Calibrated, SceneSet]:
    """The test source of a run with κ per image, and the images to judge it on.

    split: where the images to calibrate on come from. None = half of `scenes`, drawn by image id; the other half is
    then what it is judged on. The source gives all the ranks that it has. Raises UserError for a split with images that
    the network was trained on or is judged on.
    """
    known: SceneSet
    known, test = apart(scenes) if split is None else (open_scenes(config.data, split), scenes)
    if split is not None:
        refuse_seen(known, test, open_scenes(config.data, config.data.train))
    everything = replace(config, source=replace(config.source, test_kappa=all_ranks(config, len(scenes.class_names))))
    whole = source_for(everything, scenes, at_test=True)
    source = whole if split is None else source_for(everything, known, at_test=True)
    pixels = torch.from_numpy(label_counts(known)).long()
    labelled = pixels.sum(1).nonzero().flatten()  # others say nothing, and do not count in the coverage that is found
    if not len(labelled):
        raise UserError(f"no image to calibrate on, of {known.split}, has a labelled pixel; use --calibration SPLIT")
    rankings = rankings_of(model, Subset(known, labelled.tolist()), source, config, here)
    return Calibrated(whole, calibrate(rankings, pixels[labelled], alpha=alpha), whole.fingerprint), test


def refuse_seen(known: SceneSet, test: SceneSet, train: SceneSet) -> None:
    """Raise UserError where images to calibrate on are trained on, or judged on."""
    for other, what in ((train, "training images, which the ranking knows"), (test, "the images it is judged on")):
        if shared := set(known.image_ids) & set(other.image_ids):
            raise UserError(
                f"--calibration {known.split}: {len(shared)} of its {len(known)} images are among {what}, for example "
                f"{min(shared)}; use images of neither split"
            )


def apart(scenes: SceneSet) -> tuple[SceneSet, SceneSet]:
    """Two halves of a split, the same whatever the order of its images."""
    half = folds_of(scenes.image_ids, 2)
    first, second = (Subset(scenes, np.flatnonzero(half == number).tolist()) for number in (0, 1))
    return first, second


def all_ranks(config: Stage2Config, num_classes: int) -> int:
    """The most ranks that the test source has for an image."""
    if config.source.at_test != "cache":
        return num_classes
    return LabelCache.open(config.source.cache or f"{config.out}/labels").key.k


def rankings_of(
    model: SegmentationModel, scenes: SceneSet, source: Source, config: Stage2Config, here: Placement
) -> Ranking:
    """The rankings of all images, padded to the longest."""
    found = []
    with Meter(f"ranking {scenes.split}", len(scenes), unit="image") as meter:
        for index in range(len(scenes)):
            scene = scenes[index]
            image = torch.from_numpy(scene.image)
            found.append(label_ranking(model, image, scene_ranking(source, scene), config.inference, here))
            meter.advance()
    kappa = max(ranking.kappa for ranking in found)
    columns = zip(*((r.labels, r.scores, r.valid) for r in (padded(r, kappa) for r in found)), strict=True)
    return Ranking(*(torch.cat(column) for column in columns))


def padded(ranking: Ranking, kappa: int) -> Ranking:
    """A ranking with padding up to `kappa` ranks."""
    room = (0, kappa - ranking.kappa)
    parts = (torch.nn.functional.pad(part, room) for part in (ranking.labels, ranking.scores, ranking.valid))
    return Ranking(*parts)


def describe(calibration: Calibration, coverage: float) -> str:
    """One line on what was promised and what was found.   coverage: mean over images of the share of pixels kept."""
    c = calibration
    if c.capped:
        return (
            f"all {c.kappa} stored ranks lose {100 * c.risk:.1f} % of the pixels of the {c.images} calibration images, "
            f"more than {100 * c.alpha:g} % allows: cap reached, all are kept and nothing is promised"
        )
    return (
        f"calibrated on {c.images} images: labels with a score of at least {c.threshold:.4g} are kept; promised, on "
        f"average over draws of images like these, at least {100 * (1 - c.alpha):g} % of the pixels of an image; found "
        f"{100 * coverage:.1f} % on average over the other images"
    )
