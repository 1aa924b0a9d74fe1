"""What a loader hands over: bytes and small integers, a quarter of what a task is given, widened on the device.

Legend: B images, S side of a view, K labels, H W pixels of the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms.v2 import functional as F

from kappaseg_core.structures import Batch

RGB = tuple[float, float, float]
Box = tuple[int, int, int, int]  # top, left, height, width
Lap = Callable[[str], None]  # called with the name of each step of an augmentation that is done, to take its time


def no_lap(step: str) -> None:
    """Nobody takes times."""


@dataclass(frozen=True)
class Normalisation:
    """u8 [..., 3, H, W] → f32 on the same device: to [0, 1], then (x - mean) / std. mean, std: RGB in [0, 1] units."""

    mean: RGB
    std: RGB

    def __call__(self, pixels: Tensor) -> Tensor:
        scaled: Tensor = F.to_dtype(pixels, torch.float32, scale=True)
        normalised: Tensor = F.normalize(scaled, list(self.mean), list(self.std), inplace=True)
        return normalised


@dataclass(frozen=True)
class View:
    """An augmented image, its normalisation still to be done.

    pixels: u8 [3, S, S].   blank: where it is 0 once normalised, whatever stands in `pixels`: padding and holes.
    """

    pixels: Tensor
    normalise: Normalisation
    blank: tuple[Box, ...] = ()

    def normalised(self) -> Tensor:
        """f32 [3, S, S]."""
        return blanked(self.normalise(self.pixels)[None], [self.blank])[0]


@dataclass(frozen=True)
class Handover:
    """A micro-batch as a loader worker makes it; `batch` gives what the task takes.

    pixels: u8 [B, 3, S, S], to be normalised by `normalise` and blanked in the boxes of `blank`, or None.
    features: maps f32 [B, C, h, w], or None.   mask: integers [B, H, W], or None.   labels: u8 [B, K], or None.
    objects: i32 [B, 2, H, W], label maps and instance maps, or None; then there is no mask.
    """

    image_id: tuple[str, ...]
    pixels: Tensor | None = None
    normalise: Normalisation | None = None
    blank: tuple[tuple[Box, ...], ...] = ()
    features: tuple[Tensor, ...] | None = None
    mask: Tensor | None = None
    labels: Tensor | None = None
    objects: Tensor | None = None

    def pin_memory(self) -> Handover:
        """The same in page-locked memory, from which copies to a GPU do not wait (called by torch's loader)."""
        values: dict[str, Any] = dict(vars(self))
        tensors = {name: value.pin_memory() for name, value in values.items() if isinstance(value, Tensor)}
        features = self.features and tuple(one.pin_memory() for one in self.features)
        return Handover(**{**values, **tensors, "features": features})

    def batch(self, device: torch.device | str, progress: float = 0.0) -> Batch:
        """On the device, in the types that tasks expect."""

        def there(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        pixels, mask, labels, objects = there(self.pixels), there(self.mask), there(self.labels), there(self.objects)
        mask, instances = (mask, None) if objects is None else objects.unbind(1)
        image = None
        if pixels is not None:
            assert self.normalise is not None
            image = blanked(self.normalise(pixels), self.blank)
        return Batch(
            self.image_id, image, self.features and tuple(one.to(device, non_blocking=True) for one in self.features),
            None if mask is None else mask.long(), None if labels is None else labels.float(),
            None if instances is None else instances.long(), progress=progress,
        )  # fmt: skip


def blanked(images: Tensor, boxes: Sequence[Sequence[Box]]) -> Tensor:
    """Images [B, 3, S, S] with 0 in the boxes of each, in place."""
    for image, own in zip(images, boxes, strict=True):
        for top, left, height, width in own:
            image[:, top : top + height, left : left + width] = 0
    return images


def collate(samples: Sequence[tuple[View | tuple[Tensor, ...], Any, str]], *, target: str) -> Handover:
    """(view or feature maps, target, image_id) samples as one; `target` names the field of Handover that they fill."""
    inputs, targets, ids = zip(*samples, strict=True)
    goals: dict[str, Any] = {target: stacked([torch.as_tensor(each) for each in targets])}
    if isinstance(inputs[0], View):
        pixels = stacked([view.pixels for view in inputs])
        return Handover(ids, pixels, inputs[0].normalise, tuple(view.blank for view in inputs), **goals)
    return Handover(ids, features=tuple(map(stacked, zip(*inputs, strict=True))), **goals)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor; in a loader worker it lies in the memory that the training process reads, without a further copy."""
    together: Tensor = default_collate(list(tensors))
    return together
