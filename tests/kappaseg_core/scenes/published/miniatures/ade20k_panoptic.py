"""ADEChallengeData2016 with its instance maps: two training images and one for validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.kappaseg_core.scenes.published.miniature import Miniature, draw_mask, draw_photo

# label map, things (red) and objects (green); 8 = bed = thing 1, 9 = windowpane = thing 2, 150 = flag = thing 100
STORED = {
    "training": {
        "ADE_train_00000001": ([[0, 1, 8], [8, 8, 3]], [[0, 1, 1], [1, 0, 0]], [[0, 1, 1], [2, 0, 0]]),
        "ADE_train_00000002": ([[150, 150], [9, 4]], [[100, 100], [2, 0]], [[1, 7], [3, 0]]),
    },
    "validation": {"ADE_val_00000001": ([[1, 1, 0]], [[0, 0, 0]], [[0, 0, 0]])},
}
#: an object lies over the wall of the first image, and one pixel of bed is in no object
EXPECTED = {
    "train": {"ADE_train_00000001": [[-1, 7, 7], [7, 7, 2]], "ADE_train_00000002": [[149, 149], [8, 3]]},
    "val": {"ADE_val_00000001": [[0, 0, -1]]},
}
INSTANCES = {
    "train": {"ADE_train_00000001": [[0, 1, 1], [2, 0, 0]], "ADE_train_00000002": [[1, 7], [3, 0]]},
    "val": {"ADE_val_00000001": [[0, 0, 0]]},
}


def draw_instances(path: Path, things: Sequence[Sequence[int]], objects: Sequence[Sequence[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([things, objects, np.zeros_like(things)], -1).astype(np.uint8)).save(path)


def make(path: Path) -> Miniature:
    root = path / "ADEChallengeData2016"
    photos = {}
    for folder, images in STORED.items():
        for image_id, (rows, things, objects) in images.items():
            draw_mask(root / "annotations" / folder / f"{image_id}.png", rows)
            draw_instances(root / "annotations_instance" / folder / f"{image_id}.png", things, objects)
            photo = root / "images" / folder / f"{image_id}.jpg"
            photos[image_id] = draw_photo(photo, (len(rows), len(rows[0])), len(photos))

    def spoil() -> Sequence[str]:
        file = root / "annotations_instance" / "training" / "ADE_train_00000002.png"
        draw_instances(file, [[101, 100], [2, 0]], [[1, 7], [3, 0]])
        return str(file), "101 (1 pixel)", "1..100"

    names = {0: "wall", 7: "bed", 149: "flag"}
    return Miniature("ade20k_panoptic", root, EXPECTED, photos, names, spoil, instances=INSTANCES)


VARIANTS = {"": make}
