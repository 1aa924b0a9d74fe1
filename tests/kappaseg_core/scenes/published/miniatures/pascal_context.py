"""PASCAL-Context with two training images and one for validation: published annotations and converted ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from kappaseg_core.scenes.published.pascal_context import RAW_IDS
from tests.kappaseg_core.scenes.published.miniature import (
    Miniature,
    draw_mask,
    draw_matrix,
    draw_photo,
    train_and_val,
    write_list,
)

IDS = ("2008_000002", "2008_000003", "2008_000007")
#: of the 459: 2 aeroplane, 9 bag, 284 person, 360 sky, 424 truck, 454 window, 458 wood; 1, 3, 459, 0 are none of the 59
PUBLISHED = ([[2, 9, 1], [458, 458, 459]], [[360, 0], [0, 284]], [[454, 424, 3]])
CONVERTED = ([[1, 2, 0], [59, 59, 0]], [[47, 0], [0, 37]], [[58, 54, 0]])
OURS = {"60": CONVERTED, "59": ([[0, 1, -1], [58, 58, -1]], [[46, -1], [-1, 36]], [[57, 53, -1]])}
NAMES = {
    "60": {0: "background", 1: "aeroplane", 37: "person", 47: "sky", 54: "truck", 59: "wood"},
    "59": {0: "aeroplane", 36: "person", 46: "sky", 53: "truck", 58: "wood"},
}


def maker(classes: str, *, converted: bool) -> Callable[[Path], Miniature]:
    def make(path: Path) -> Miniature:
        root = path / "VOCdevkit" / "VOC2010"
        lists = root / "ImageSets" / ("SegmentationContext" if converted else "Main")
        write_list(lists / "train.txt", IDS[:-1])
        write_list(lists / "val.txt", IDS[-1:])
        photos = {}
        for image_id, rows in zip(IDS, CONVERTED if converted else PUBLISHED, strict=True):
            draw(path, image_id, rows)
            photo = root / "JPEGImages" / f"{image_id}.jpg"
            photos[image_id] = draw_photo(photo, (len(rows), len(rows[0])), len(photos))
        if not converted:
            (path / "labels.txt").write_text("".join(f"{raw}: {name}\n" for name, raw in RAW_IDS.items()))

        def spoil() -> Sequence[str]:
            odd = 60 if converted else 460
            return draw(path, IDS[-1], [[odd, 2, 2]]).name, f"{odd} (1 pixel)"

        splits = train_and_val(IDS, OURS[classes])
        return Miniature("pascal_context", path, splits, photos, NAMES[classes], spoil, {"classes": classes})

    def draw(path: Path, image_id: str, rows: Sequence[Sequence[int]]) -> Path:
        if converted:
            return draw_mask(path / "VOCdevkit" / "VOC2010" / "SegmentationClassContext" / f"{image_id}.png", rows)
        return draw_matrix(path / "trainval" / f"{image_id}.mat", "LabelMap", np.array(rows, np.uint16))

    return make


VARIANTS = {
    "60": maker("60", converted=False),
    "59": maker("59", converted=False),
    "60 converted": maker("60", converted=True),
    "59 converted": maker("59", converted=True),
}
