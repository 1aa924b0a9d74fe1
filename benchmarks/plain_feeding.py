"""Training crops of stage two in the published order written plainly, on torchvision: what ours are measured against,
and what tests say they equal.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from kappaseg_core.handover import RGB
from kappaseg_core.ranking import IGNORE
from kappaseg_core.structures import Scene
from stage2_segmentation.augment import TRIES, scaled_size
from stage2_segmentation.config import AugmentConfig


def in_whole_images(scene: Scene, augment: AugmentConfig, mean: RGB, std: RGB) -> tuple[Tensor, Tensor]:
    """Normalised image f32 [3, S, S] and mask i32 [S, S]. Everything is done to the whole scaled image and mask."""
    image, mask = tv_tensors.Image(torch.from_numpy(scene.image)), tv_tensors.Mask(torch.from_numpy(scene.mask)[None])
    size = scaled_size(scene.mask.shape, augment.short_side, float(torch.empty(()).uniform_(*augment.scale)))
    image = F.resize(image, list(size), antialias=True).contiguous()
    mask = F.resize(mask, list(size), InterpolationMode.NEAREST_EXACT)
    height, width = min(augment.crop, size[0]), min(augment.crop, size[1])
    for _ in range(TRIES):
        top, left = int(torch.randint(size[0] - height + 1, ())), int(torch.randint(size[1] - width + 1, ()))
        counts = torch.bincount(mask[0, top : top + height, left : left + width].flatten().long() + 1)[1:]
        if counts.sum() and int(counts.max()) / int(counts.sum()) <= augment.max_share:
            break
    image, mask = F.crop(image, top, left, height, width), F.crop(mask, top, left, height, width)
    if torch.rand(()) < augment.flip:
        image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
    if augment.photometric:
        image = v2.RandomPhotometricDistort()(image)
    image = F.normalize(F.to_dtype(image, torch.float32, scale=True), list(mean), list(std))
    missing = [0, 0, augment.crop - width, augment.crop - height]
    padded: Tensor = F.pad(image, missing, fill=0.0).as_subclass(Tensor)
    return padded, F.pad(mask, missing, fill=IGNORE)[0].as_subclass(Tensor)
