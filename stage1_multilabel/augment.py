"""Images and label targets of stage one, on torchvision's transforms (v2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from kappaseg_core.handover import RGB, Box, Lap, Normalisation, View, no_lap
from kappaseg_core.label_counts import runs
from kappaseg_core.seeding import seeded
from kappaseg_core.structures import Scene, SceneSet
from stage1_multilabel.config import AugmentConfig


class TrainExamples:
    """Augmented training images: `make(index, seed)` → (view of S x S, labels u8 [K] multi-hot, image_id).

    Resize, RandAugment, normalise, cutout (paper: cutout and RandAugment; the published cutout never ran), of which
    normalising is left to the device. The targets are the labels with at least one pixel in the view (Sec. 3.2, He et
    al. 2022: any pixel counts), so a crop has the labels of the crop.
    """

    def __init__(self, scenes: SceneSet, augment: AugmentConfig, mean: RGB, std: RGB) -> None:
        self.scenes, self.num_classes, self.normalise = scenes, len(scenes.class_names), Normalisation(mean, std)
        self.geometry, self.resize = geometry(augment), square(augment.image_size)
        operations = augment.randaugment_ops
        self.randaugment = v2.RandAugment(operations, augment.randaugment_magnitude) if operations else None
        self.cutout = Cutout(augment.cutout) if augment.cutout else None

    def __len__(self) -> int:
        return len(self.scenes)

    def make(self, index: int, seed: int) -> tuple[View, NDArray[np.uint8], str]:
        scene = self.scenes[index]
        with seeded(seed):
            view, labels = self.view(scene)
        return view, labels, scene.image_id

    def view(self, scene: Scene, lap: Lap = no_lap) -> tuple[View, NDArray[np.uint8]]:
        """A random view of the scene and its labels."""
        image = tv_tensors.Image(torch.from_numpy(scene.image))
        mask = tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(scene.mask)))
        if self.geometry is not None:
            image, mask = self.geometry(image, mask)
            lap("crop, flip")
        labels = self.present(mask.numpy())
        lap("labels: which are there")
        image = self.resize(image)
        lap("photo: scale")
        if self.randaugment is not None:
            image = self.randaugment(image)
            lap("photo: RandAugment")
        pixels = image.as_subclass(Tensor)
        holes = self.cutout(pixels) if self.cutout else ()
        return View(pixels, self.normalise, holes), labels

    def present(self, mask: NDArray[Any]) -> NDArray[np.uint8]:
        """1 for the labels with a pixel in mask [H, W], u8 [K]."""
        found = np.zeros(self.num_classes + 1, np.uint8)
        found[runs(mask)[0] + 1] = 1  # IGNORE falls into the first
        return found[1:]


def geometry(augment: AugmentConfig) -> v2.Transform | None:
    """Crop and flip, where there are such: what moves labels in and out of the view. The mask is not resized."""
    steps: list[v2.Transform] = []
    if augment.crop < 1:
        steps.append(RandomCrop(augment.crop))
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip(augment.flip))
    return v2.Compose(steps) if steps else None


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


class Cutout:
    """A square hole of up to half the side, with a probability: its box, or none. Drawn as torchvision draws it."""

    def __init__(self, probability: float) -> None:
        self.probability = probability
        self.erasing = v2.RandomErasing(scale=(0.02, 0.25), ratio=(1.0, 1.0))

    def __call__(self, image: Tensor) -> tuple[Box, ...]:
        if torch.rand(1) >= self.probability:
            return ()
        hole = self.erasing.make_params([image])
        return ((hole["i"], hole["j"], hole["h"], hole["w"]),) if hole["v"] is not None else ()


def square(size: int) -> v2.Transform:
    """To size × size with anti-aliasing, in memory as [3, size, size] whatever it was before."""
    resize = v2.Resize((size, size), InterpolationMode.BILINEAR, antialias=True)
    return v2.Compose([resize, v2.Lambda(torch.Tensor.contiguous)])


class EvalImages:
    """Images as the classifier sees them when ranking: u8 [3, H, W] → f32 [3, S, S]. Shared with the service.

    In two steps, of which the second may wait until the image is on its device: `square`, `normalise`.
    """

    def __init__(self, image_size: int, mean: RGB, std: RGB) -> None:
        self.resize, self.normalise = square(image_size), Normalisation(mean, std)

    def square(self, image: NDArray[Any]) -> Tensor:
        """u8 [3, S, S]."""
        out: Tensor = self.resize(torch.from_numpy(image))
        return out

    def __call__(self, image: NDArray[Any]) -> Tensor:
        return self.normalise(self.square(image))
