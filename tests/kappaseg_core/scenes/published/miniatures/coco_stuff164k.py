"""COCO-Stuff 164k with two training images and one for validation, as published and with converted maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.kappaseg_core.scenes.published.miniature import Miniature, draw_mask, draw_photo, train_and_val

IDS = ("000000000009", "000000000025", "000000000139")
SPLITS = dict(zip(IDS, ("train2017", "train2017", "val2017"), strict=True))
#: 0 person, 10 fire hydrant, 12 stop sign (11 is unused), 89 toothbrush, 91 banner (90 is unused), 181 wood
STORED = ([[255, 0, 10], [12, 181, 181]], [[89, 91], [91, 255]], [[66, 69, 255, 0]])
OURS = ([[-1, 0, 10], [11, 170, 170]], [[79, 80], [80, -1]], [[60, 61, -1, 0]])
NAMES = {0: "person", 10: "fire hydrant", 11: "stop sign", 61: "toilet", 80: "banner", 170: "wood"}


def place(path: Path, image_id: str) -> tuple[Path, Path]:
    """Photo and published map."""
    maps = path / "stuffthingmaps_trainval2017" / SPLITS[image_id]
    return path / SPLITS[image_id] / f"{image_id}.jpg", maps / f"{image_id}.png"


def make(path: Path) -> Miniature:
    photos = {}
    for image_id, rows in zip(IDS, STORED, strict=True):
        photo, mask = place(path, image_id)
        draw_mask(mask, rows)
        photos[image_id] = draw_photo(photo, (len(rows), len(rows[0])), len(photos))

    def spoil() -> Sequence[str]:
        return draw_mask(place(path, IDS[1])[1], [[90, 90], [91, 255]]).name, "90 (2 pixels)", "0..255"

    return Miniature("coco_stuff164k", path, train_and_val(IDS, OURS), photos, NAMES, spoil)


def make_both(path: Path) -> Miniature:
    """Converted maps beside the published ones, which count."""
    made = make(path)
    for image_id in IDS:
        mask = place(path, image_id)[1]
        draw_mask(mask.with_name(f"{image_id}_labelTrainIds.png"), [[0]])
    return made


def make_converted(path: Path) -> Miniature:
    """Converted maps alone, in the folders of a converter: images/ and annotations/."""
    photos, masks = {}, {}
    for image_id, rows in zip(IDS, OURS, strict=True):
        stored = [[255 if label < 0 else label for label in row] for row in rows]
        masks[image_id] = draw_mask(path / "annotations" / SPLITS[image_id] / f"{image_id}_labelTrainIds.png", stored)
        photo = path / "images" / SPLITS[image_id] / f"{image_id}.jpg"
        photos[image_id] = draw_photo(photo, (len(rows), len(rows[0])), len(photos))

    def spoil() -> Sequence[str]:
        return draw_mask(masks[IDS[-1]], [[171, 60, 255, 0]]).name, "171 (1 pixel)"

    return Miniature("coco_stuff164k", path, train_and_val(IDS, OURS), photos, NAMES, spoil)


VARIANTS = {"": make, "published and converted": make_both, "converted": make_converted}
