"""Images and label maps of stage two, in the published order: scale, crop, flip, photometric jitter, normalise, pad."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from kappaseg_core.ranking import IGNORE
from kappaseg_core.seeding import seeded
from kappaseg_core.structures import SceneSet
from stage2_segmentation.config import AugmentConfig

TRIES = 10  # crops drawn before one that breaks the max_share rule is taken anyway


class TrainExamples:
    """Augmented training crops: `make(index, seed)` → (image f32 [3, S, S], mask i16/i32 [S, S], image_id)."""

    def __init__(
        self, scenes: SceneSet, augment: AugmentConfig, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self.scenes, self.augment = scenes, augment
        self.mean, self.std = list(mean), list(std)
        self.photometric = v2.RandomPhotometricDistort()
        self.dtype = np.int16 if len(scenes.class_names) <= np.iinfo(np.int16).max else np.int32

    def __len__(self) -> int:
        return len(self.scenes)

    def make(self, index: int, seed: int) -> tuple[Tensor, np.ndarray, str]:
        scene = self.scenes[index]
        image = tv_tensors.Image(torch.from_numpy(scene.image))
        mask = tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(scene.mask))[None])
        with seeded(seed):
            image, mask = self.view(image, mask)
        return image.as_subclass(Tensor), mask[0].numpy().astype(self.dtype), scene.image_id

    def view(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        augment = self.augment
        low, high = augment.scale
        size = scaled_size(image.shape[-2:], augment.short_side, float(torch.empty(()).uniform_(low, high)))
        image = F.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True).contiguous()
        # release: OpenCV's nearest, which is the one up and left of it; that shifts labels by up to half a pixel
        mask = F.resize(mask, list(size), InterpolationMode.NEAREST_EXACT)
        top, left, height, width = crop_box(mask[0], augment)
        image, mask = F.crop(image, top, left, height, width), F.crop(mask, top, left, height, width)
        if torch.rand(()) < augment.flip:
            image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
        if augment.photometric:
            image = self.photometric(image)
        image = F.normalize(F.to_dtype(image, torch.float32, scale=True), self.mean, self.std)
        missing = [0, 0, augment.crop - width, augment.crop - height]  # left, top, right, bottom
        return F.pad(image, missing, fill=0.0), F.pad(mask, missing, fill=IGNORE)


def scaled_size(size: tuple[int, ...], short_side: int, scale: float = 1.0) -> tuple[int, int]:
    """Height and width after bringing the shorter side to short_side × scale, aspect kept."""
    factor = short_side * scale / min(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def crop_box(mask: Tensor, augment: AugmentConfig) -> tuple[int, int, int, int]:
    """Top, left, height, width of a random crop of mask i32 [H, W] in which no label holds more than max_share.

    release: the rule counts 255 as ignore whatever the set's ignore value is; ours: IGNORE, always.
    """
    height, width = min(augment.crop, mask.shape[0]), min(augment.crop, mask.shape[1])
    top = left = 0
    for _ in range(TRIES):
        top = int(torch.randint(mask.shape[0] - height + 1, ()))
        left = int(torch.randint(mask.shape[1] - width + 1, ()))
        counts = torch.bincount(mask[top : top + height, left : left + width].flatten().long() + 1)[1:]
        labelled = int(counts.sum())
        if labelled and int(counts.max()) / labelled <= augment.max_share:
            break
    return top, left, height, width
