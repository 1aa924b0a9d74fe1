"""Scenes for tests of the augmentations: photos of odd sizes with blobs of labels."""

from __future__ import annotations

import numpy as np

from kappaseg_core.ranking import IGNORE
from kappaseg_core.structures import Scene


class Blobs:
    """Smooth random colours and blocks of labels in images of different odd sizes, stored as decoded photos are."""

    split, class_names = "train", tuple("abcdefg")
    sizes = ((37, 61), (64, 48), (90, 33))

    def __init__(self) -> None:
        self.image_ids = tuple(f"blob {number}" for number in range(len(self.sizes)))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Scene:
        height, width = self.sizes[index]
        random = np.random.default_rng(index)
        y, x = np.mgrid[:height, :width]
        waves = [127 + 120 * np.sin(random.uniform(0, 0.3) * x + random.uniform(0, 0.3) * y + c) for c in range(3)]
        blocks = random.integers(-1, len(self.class_names), (height // 12 + 1, width // 12 + 1), dtype=np.int32)
        mask = np.ascontiguousarray(blocks.repeat(12, 0).repeat(12, 1)[:height, :width])
        mask[0] = IGNORE
        return Scene(np.stack(waves, -1).astype(np.uint8).transpose(2, 0, 1), mask, self.image_ids[index])

    def image(self, index: int) -> np.ndarray:
        return self[index].image

    def fingerprint(self) -> str:
        return "blobs"
