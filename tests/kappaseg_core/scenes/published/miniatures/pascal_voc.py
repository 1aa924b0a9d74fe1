"""VOC 2012 with two training images and one for validation, and with an enlarged training split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.kappaseg_core.scenes.published.miniature import Miniature, draw_mask, draw_photo, train_and_val, write_list

PALETTE = [value for index in range(256) for value in (index, 255 - index, 7 * index % 256)]
MASKS = {
    "2007_000032": [[0, 1, 255], [15, 15, 20]],
    "2007_000039": [[0, 0], [255, 20], [9, 0]],
    "2007_000033": [[1, 255, 0, 0]],
}
OURS = ([[0, 1, -1], [15, 15, 20]], [[0, 0], [-1, 20], [9, 0]], [[1, -1, 0, 0]])
IDS = tuple(MASKS)
EXTRA = "2008_000008"


def make(path: Path) -> Miniature:
    root = path / "VOCdevkit" / "VOC2012"
    photos = {}
    for image_id, rows in MASKS.items():
        draw_mask(root / "SegmentationClass" / f"{image_id}.png", rows, palette=PALETTE)
        photo = root / "JPEGImages" / f"{image_id}.jpg"
        photos[image_id] = draw_photo(photo, (len(rows), len(rows[0])), len(photos))
    lists = root / "ImageSets" / "Segmentation"
    write_list(lists / "train.txt", IDS[:-1])
    write_list(lists / "val.txt", IDS[-1:])

    def spoil() -> Sequence[str]:
        draw_mask(root / "SegmentationClass" / f"{IDS[-1]}.png", [[21, 255, 0, 0]], palette=PALETTE)
        return f"{IDS[-1]}.png", "21 (1 pixel)", "0..255"

    names = {0: "background", 1: "aeroplane", 15: "person", 20: "tvmonitor"}
    return Miniature("pascal_voc", path, train_and_val(IDS, OURS), photos, names, spoil)


def make_trainaug(path: Path) -> Miniature:
    """One image more, whose mask is among those of SBD alone; grey masks for all of training; lines with paths."""
    plain = make(path)
    root = path / "VOCdevkit" / "VOC2012"
    photos = {**plain.photos, EXTRA: draw_photo(root / "JPEGImages" / f"{EXTRA}.jpg", (1, 3))}
    train = (*IDS[:-1], EXTRA)
    stored = {**MASKS, EXTRA: [[0, 13, 255]]}
    for image_id in train:
        draw_mask(root / "SegmentationClassAug" / f"{image_id}.png", stored[image_id])
    lines = [f"/JPEGImages/{image_id}.jpg /SegmentationClassAug/{image_id}.png" for image_id in train]
    write_list(root / "ImageSets" / "Segmentation" / "trainaug.txt", lines)
    splits = {"train": {**plain.splits["train"], EXTRA: [[0, 13, -1]]}, "val": plain.splits["val"]}
    return Miniature("pascal_voc", path, splits, photos, plain.names, plain.spoil, {"train": "trainaug"})


VARIANTS = {"": make, "trainaug": make_trainaug}
