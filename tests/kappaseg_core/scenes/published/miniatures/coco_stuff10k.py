"""COCO-Stuff 10k v1.1 with two training images and one for validation, in both generations of MATLAB files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.kappaseg_core.scenes.published.miniature import Miniature, draw_matrix, draw_photo, train_and_val, write_list

IDS = ("COCO_train2014_000000000077", "COCO_train2014_000000000113", "COCO_train2014_000000000064")
#: 1 person, 11 fire hydrant, 13 stop sign (12 is unused), 90 toothbrush, 92 banner (91 is unused), 182 wood
STORED = ([[0, 1, 11], [13, 182, 182]], [[90, 92], [92, 0]], [[67, 70, 0, 1]])
OURS = ([[-1, 0, 10], [11, 170, 170]], [[79, 80], [80, -1]], [[60, 61, -1, 0]])
NAMES = {0: "person", 10: "fire hydrant", 11: "stop sign", 60: "dining table", 61: "toilet", 79: "toothbrush",
         80: "banner", 170: "wood"}  # fmt: skip


def maker(version: int) -> Callable[[Path], Miniature]:
    def make(path: Path) -> Miniature:
        root = path / "cocostuff-10k-v1.1"
        for name, image_ids in (("train", IDS[:-1]), ("test", IDS[-1:]), ("all", IDS)):
            write_list(root / "imageLists" / f"{name}.txt", image_ids)
        photos = {}
        for image_id, rows in zip(IDS, STORED, strict=True):
            draw(root, image_id, rows)
            photo = root / "images" / f"{image_id}.jpg"
            photos[image_id] = draw_photo(photo, (len(rows), len(rows[0])), len(photos))

        def spoil() -> Sequence[str]:
            return draw(root, IDS[1], [[12, 92], [92, 0]]).name, "12 (1 pixel)", "0..182"

        return Miniature("coco_stuff10k", root, train_and_val(IDS, OURS), photos, NAMES, spoil)

    def draw(root: Path, image_id: str, rows: Sequence[Sequence[int]]) -> Path:
        file = root / "annotations" / f"{image_id}.mat"
        return draw_matrix(file, "S", np.array(rows, np.uint8), version=version)

    return make


VARIANTS = {"": maker(5), "of MATLAB 7.3": maker(7)}
