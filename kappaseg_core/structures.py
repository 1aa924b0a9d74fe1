"""The records that flow between the parts. Legend: B images, C channels, H W pixels, h w cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Scene:
    """One image with its label map.

    image: u8 [3, H, W], RGB, upright (EXIF orientation applied).
    mask: i32 [H, W], class ids 0..K-1 or IGNORE (-1).
    image_id: stable name of the image, the same in every split, run and storage form.
    instances: i32 [H, W], which object of its label a pixel belongs to: numbers from 1, 0 = none, CROWD = objects that
    were not told apart (segments.segments_of); None where the scene set does not tell objects apart.
    """

    image: np.ndarray
    mask: np.ndarray
    image_id: str
    instances: np.ndarray | None = None


class SceneSet(Protocol):
    """One split of a data set: what `kappaseg_core.scenes.open_scenes` returns. Picklable; opens files lazily.

    Reading a scene must not depend on any other scene having been read, nor on the process that reads it.
    A set whose scenes have instances also has `things`, bool for each of the K labels (scenes.things_of).
    """

    class_names: tuple[str, ...]
    image_ids: tuple[str, ...]
    split: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...

    def image(self, index: int) -> np.ndarray:
        """The image alone, u8 [3, H, W]; works where a mask is missing or bad."""
        ...

    def fingerprint(self) -> str:
        """sha256 (hex) over the sorted image ids and the bytes of the images: the same data give the same value,
        whatever holds them (a folder and its packed form agree)."""
        ...


@dataclass(frozen=True)
class Batch:
    """What a task is trained on.

    image: f32 [B, 3, H, W], normalised; None where `features` holds what became of it.
    features: the maps f32 [B, C, h, w] of a frozen backbone; None where the backbone is still to be run.
    mask: i64 [B, H, W], ids or IGNORE.      labels: f32 [B, K] multi-hot.     One of the two, as the task asks.
    instances: i64 [B, H, W], which object of its label a pixel belongs to (Scene.instances); None where the task does
    not learn objects.
    image_id: names of the B images, by which a task asks its source for their rankings.
    progress: share of the training that lies behind, 0 at the first step, below 1 at the last: what a task whose
    targets change over time goes by.
    """

    image_id: tuple[str, ...]
    image: Tensor | None = None
    features: tuple[Tensor, ...] | None = None
    mask: Tensor | None = None
    labels: Tensor | None = None
    instances: Tensor | None = None
    progress: float = 0.0

    def __len__(self) -> int:
        return len(self.image_id)

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            image=None if self.image is None else self.image.to(device, non_blocking=True),
            features=self.features and tuple(one.to(device, non_blocking=True) for one in self.features),
            mask=None if self.mask is None else self.mask.to(device, non_blocking=True),
            labels=None if self.labels is None else self.labels.to(device, non_blocking=True),
            instances=None if self.instances is None else self.instances.to(device, non_blocking=True),
        )
