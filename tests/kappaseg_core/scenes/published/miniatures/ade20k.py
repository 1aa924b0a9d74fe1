"""ADEChallengeData2016 with two training images and one for validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.kappaseg_core.scenes.published.miniature import Miniature, draw_mask, draw_photo

STORED = {
    "training": {"ADE_train_00000001": [[0, 1, 2], [150, 150, 3]], "ADE_train_00000002": [[13, 13], [0, 0], [4, 5]]},
    "validation": {"ADE_val_00000001": [[150, 0, 1]]},
}
EXPECTED = {
    "train": {"ADE_train_00000001": [[-1, 0, 1], [149, 149, 2]], "ADE_train_00000002": [[12, 12], [-1, -1], [3, 4]]},
    "val": {"ADE_val_00000001": [[149, -1, 0]]},
}


def make(path: Path) -> Miniature:
    root = path / "ADEChallengeData2016"
    photos = {}
    for folder, masks in STORED.items():
        for image_id, rows in masks.items():
            draw_mask(root / "annotations" / folder / f"{image_id}.png", rows)
            photo = root / "images" / folder / f"{image_id}.jpg"
            photos[image_id] = draw_photo(photo, (len(rows), len(rows[0])), len(photos))
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1576\t11664\t1172\t1\twall\n")

    def spoil() -> Sequence[str]:
        draw_mask(root / "annotations" / "training" / "ADE_train_00000002.png", [[151, 13], [0, 0], [151, 5]])
        return "ADE_train_00000002.png", "151 (2 pixels)", "0..150"

    names = {0: "wall", 12: "person", 89: "television receiver", 149: "flag"}
    return Miniature("ade20k", root, EXPECTED, photos, names, spoil)


VARIANTS = {"": make}
