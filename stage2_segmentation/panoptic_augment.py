"""Crops of scenes whose objects are told apart: the instance map goes wherever the label map goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes import things_of
from kappaseg_core.seeding import seeded
from kappaseg_core.segments import Segments, segments_of
from kappaseg_core.structures import SceneSet
from stage2_segmentation.augment import TrainExamples
from stage2_segmentation.config import AugmentConfig


@dataclass(frozen=True)
class PanopticExample:
    """A training crop. image: f32 [3, S, S].   mask: i64 [S, S], ids or IGNORE.

    segments: the objects and kinds of stuff that the crop shows, which a mask network is to find; not the crowds.
    """

    image: Tensor
    mask: Tensor
    segments: Segments
    image_id: str


class PanopticExamples:
    """Augmented training crops with their segments. The same seed gives the crop that TrainExamples gives.

    Both maps are resized to the nearest pixel, so that a pixel keeps the object that its label is of.
    """

    def __init__(
        self, scenes: SceneSet, augment: AugmentConfig, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self.things = torch.tensor(things_of(scenes))
        self.crops = TrainExamples(scenes, augment, mean, std)

    def __len__(self) -> int:
        return len(self.crops)

    def make(self, index: int, seed: int) -> PanopticExample:
        scene = self.crops.scenes[index]
        assert scene.instances is not None  # since the set has things
        image = tv_tensors.Image(torch.from_numpy(scene.image))
        maps = tv_tensors.Mask(torch.from_numpy(np.stack([scene.mask, scene.instances])))
        with seeded(seed):
            image, maps = self.crops.view(image, maps)
        mask, instances = maps.as_subclass(Tensor).long()
        instances = torch.where(mask == IGNORE, 0, instances)  # padding, which is IGNORE in both
        return PanopticExample(
            image.as_subclass(Tensor), mask, segments_of(mask, instances, self.things), scene.image_id
        )  # fmt: skip
