"""Some of the scenes of a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kappaseg_core.config import fingerprint
from kappaseg_core.structures import Scene, SceneSet


class Subset:
    """The scenes at `indices`, in that order. split: its name; None = that of the whole."""

    def __init__(self, scenes: SceneSet, indices: Sequence[int], split: str | None = None) -> None:
        self.scenes, self.indices = scenes, tuple(indices)
        self.class_names, self.split = scenes.class_names, split or scenes.split
        self.image_ids = tuple(scenes.image_ids[index] for index in self.indices)
        self.things: tuple[bool, ...] | None = getattr(scenes, "things", None)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Scene:
        return self.scenes[self.indices[index]]

    def image(self, index: int) -> np.ndarray:
        return self.scenes.image(self.indices[index])

    def fingerprint(self) -> str:
        return fingerprint([self.scenes.fingerprint(), sorted(self.image_ids)])
