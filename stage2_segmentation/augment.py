"""Images and label maps of stage two, in the published order: scale, crop, flip, photometric jitter, normalise, pad.

What is cropped away is neither scaled (label map) nor copied (image), and normalising is left to the device. Where
objects are learnt, the instance map goes wherever the label map goes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from kappaseg_core.handover import RGB, Box, Lap, Normalisation, View, no_lap
from kappaseg_core.label_counts import runs
from kappaseg_core.ranking import IGNORE
from kappaseg_core.seeding import seeded
from kappaseg_core.structures import Scene, SceneSet
from stage2_segmentation.config import AugmentConfig
from stage2_segmentation.photometric import Photometric

TRIES = 10  # crops drawn before one that breaks the max_share rule is taken anyway

#: What padding is in a label map and in an instance map.
BLANK = (IGNORE, 0)
#: What a crop carries beside its view: its labels, or labels and objects (handover.collate).
Target = Literal["mask", "objects"]


class TrainExamples:
    """Augmented training crops: `make(index, seed)` → (view of S x S, mask i16/i32 [S, S], image_id).

    With target "objects", label map and instance map i32 [2, S, S] in the place of the mask, of the same crop: sizes
    are taken to the nearest pixel in both, so that a pixel keeps the object that its label is of. Padding is in no
    object. The scenes must have instances (scenes.things_of).
    """

    def __init__(
        self, scenes: SceneSet, augment: AugmentConfig, mean: RGB, std: RGB, *, target: Target = "mask"
    ) -> None:
        self.scenes, self.augment, self.normalise = scenes, augment, Normalisation(mean, std)
        self.photometric, self.target = Photometric(), target
        self.dtype = np.int16 if len(scenes.class_names) <= np.iinfo(np.int16).max else np.int32

    def __len__(self) -> int:
        return len(self.scenes)

    def make(self, index: int, seed: int) -> tuple[View, np.ndarray, str]:
        scene = self.scenes[index]
        with seeded(seed):
            view, mask = self.view(scene)
        return view, mask, scene.image_id

    def view(self, scene: Scene, lap: Lap = no_lap) -> tuple[View, np.ndarray]:
        """A random view of the scene and its labels, or its labels and objects."""
        augment, side = self.augment, self.augment.crop
        low, high = augment.scale
        size = scaled_size(scene.mask.shape, augment.short_side, float(torch.empty(()).uniform_(low, high)))
        box, labels = crop_box(scene.mask.astype(self.dtype), size, augment)
        maps = [labels]
        if self.target == "objects":
            assert scene.instances is not None  # since the set has things
            maps.append(scaled_part(scene.instances, size, box))
        lap("labels: scale, crop")
        image = resized(torch.from_numpy(scene.image), size)
        lap("photo: scale")
        image = cropped(image, box)
        if torch.rand(()) < augment.flip:
            image, maps = image.flip(-1), [one[:, ::-1] for one in maps]
        lap("photo: crop, flip")
        if augment.photometric:
            image = self.photometric(image)
            lap("photo: photometric")
        height, width = labels.shape
        below, right = side - height, side - width
        blank = ((height, 0, below, side), (0, width, side, right)) if below or right else ()
        image = F.pad(image, [0, 0, right, below]) if blank else image
        around = ((0, below), (0, right))
        maps = [np.pad(one, around, constant_values=value) for one, value in zip(maps, BLANK, strict=False)]
        lap("pad")
        return View(image, self.normalise, blank), maps[0] if self.target == "mask" else np.stack(maps)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """u8 [3, H, W] at another size: bilinear, anti-aliased."""
    scaled: Tensor = F.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)
    return scaled


def cropped(image: Tensor, box: Box) -> Tensor:
    """The part of [3, H, W], channel after channel in memory."""
    top, left, height, width = box
    return image[:, top : top + height, left : left + width].contiguous()


def scaled_size(size: tuple[int, ...], short_side: int, scale: float = 1.0) -> tuple[int, int]:
    """Height and width after bringing the shorter side to short_side × scale, aspect kept."""
    factor = short_side * scale / min(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def crop_box(mask: np.ndarray, size: tuple[int, int], augment: AugmentConfig) -> tuple[Box, np.ndarray]:
    """A random crop of mask [H, W] scaled to `size`, in which no label holds more than max_share: box and labels.

    release: the rule counts 255 as ignore whatever the set's ignore value is; ours: IGNORE, always.
    """
    rows, columns = (nearest(old, new) for old, new in zip(mask.shape, size, strict=True))
    height, width = (min(augment.crop, side) for side in size)
    for _ in range(TRIES):
        top = int(torch.randint(size[0] - height + 1, ()))
        left = int(torch.randint(size[1] - width + 1, ()))
        labels = mask.take(rows[top : top + height], 0).take(columns[left : left + width], 1)
        if largest_share(labels) <= augment.max_share:
            break
    return (top, left, height, width), labels


def scaled_part(whole: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    """The part in `box` of a map [H, W] that is scaled to `size`, as `crop_box` takes it of the label map."""
    rows, columns = (nearest(old, new) for old, new in zip(whole.shape, size, strict=True))
    top, left, height, width = box
    return whole.take(rows[top : top + height], 0).take(columns[left : left + width], 1)


def nearest(old: int, new: int) -> np.ndarray:
    """The pixel that each of `new` pixels takes where a side of `old` pixels is scaled, i64 [new].

    release: OpenCV's nearest, which is the one up and left of it; that shifts labels by up to half a pixel.
    """
    places = torch.arange(old, dtype=torch.float32)[None, None, :, None]
    return interpolate(places, (new, 1), mode="nearest-exact").flatten().long().numpy()


def largest_share(labels: np.ndarray) -> float:
    """Of the labelled pixels, the share that the most frequent label has; more than 1 where none is labelled."""
    label, length = runs(labels)
    counts = np.bincount(label + 1, length)[1:]
    labelled = counts.sum()
    return float(counts.max() / labelled) if labelled else 2.0
