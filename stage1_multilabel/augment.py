"""Images and label targets of stage one, on torchvision's transforms (v2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from kappaseg_core.ranking import presence
from kappaseg_core.seeding import seeded
from kappaseg_core.structures import SceneSet
from stage1_multilabel.config import AugmentConfig


class TrainExamples:
    """Augmented training images: `make(index, seed)` → (image f32 [3, S, S], labels u8 [K] multi-hot, image_id).

    The targets are the labels with at least one pixel in the view (Sec. 3.2, He et al. 2022: any pixel counts), so a
    crop has the labels of the crop.
    """

    def __init__(
        self, scenes: SceneSet, augment: AugmentConfig, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self.scenes, self.num_classes = scenes, len(scenes.class_names)
        self.geometry, self.look = geometry(augment), look(augment, mean, std)

    def __len__(self) -> int:
        return len(self.scenes)

    def make(self, index: int, seed: int) -> tuple[Tensor, np.ndarray[Any, Any], str]:
        scene = self.scenes[index]
        mask = tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(scene.mask))[None])
        with seeded(seed):
            image, mask = self.geometry(tv_tensors.Image(torch.from_numpy(scene.image)), mask)
            view: Tensor = self.look(image)
        return view.as_subclass(Tensor), presence(mask.long(), self.num_classes)[0].byte().numpy(), scene.image_id


def geometry(augment: AugmentConfig) -> v2.Transform:
    """Crop, flip: what moves labels in and out of the view. The mask keeps its own resolution (nearest)."""
    steps: list[v2.Transform] = []
    if augment.crop < 1:
        steps.append(RandomCrop(augment.crop))
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip(augment.flip))
    return v2.Compose(steps) if steps else v2.Identity()


class RandomCrop(v2.Transform):
    """A crop of the image's own aspect ratio whose side is a uniform share of the image's."""

    def __init__(self, smallest: float) -> None:
        super().__init__()
        self.smallest = smallest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        share = float(torch.empty(()).uniform_(self.smallest, 1.0))
        size = max(1, round(share * height)), max(1, round(share * width))
        top = int(torch.randint(height - size[0] + 1, ()))
        left = int(torch.randint(width - size[1] + 1, ()))
        return {"top": top, "left": left, "height": size[0], "width": size[1]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.crop(inpt, **params)


def look(augment: AugmentConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> v2.Transform:
    """Resize, RandAugment, normalise, cutout (paper: cutout and RandAugment; the published cutout never ran)."""
    steps: list[v2.Transform] = [square(augment.image_size)]
    if augment.randaugment_ops:
        steps.append(v2.RandAugment(augment.randaugment_ops, augment.randaugment_magnitude))
    steps.append(normalise(mean, std))
    if augment.cutout:
        steps.append(v2.RandomErasing(augment.cutout, scale=(0.02, 0.25), ratio=(1.0, 1.0)))
    return v2.Compose(steps)


def square(size: int) -> v2.Transform:
    """To size × size with anti-aliasing, in memory as [3, size, size] whatever it was before."""
    resize = v2.Resize((size, size), InterpolationMode.BILINEAR, antialias=True)
    return v2.Compose([resize, v2.Lambda(torch.Tensor.contiguous)])


def normalise(mean: tuple[float, ...], std: tuple[float, ...]) -> v2.Transform:
    """u8 → f32 in [0, 1] → (x - mean) / std."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])


class EvalImages:
    """Images as the classifier sees them when ranking: `tensor(index)` → f32 [3, S, S]. Shared with the service."""

    def __init__(self, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.transform = v2.Compose([square(image_size), normalise(mean, std)])

    def __call__(self, image: np.ndarray[Any, Any]) -> Tensor:
        out: Tensor = self.transform(torch.from_numpy(image))
        return out
