"""PASCAL-Context: the 59 most frequent of its 459 classes, with or without background.

    VOCdevkit/VOC2010/JPEGImages/<id>.jpg

and either the published annotations, with the splits of VOC 2010:

    trainval/<id>.mat                                          LabelMap: 1..459 (in VOC2010/ or in --source)
    labels.txt                                                 "2: aeroplane"; compared with ours where it is there
    VOCdevkit/VOC2010/ImageSets/Main/{train,val}.txt

or those that were already converted to the 59 classes:

    VOCdevkit/VOC2010/SegmentationClassContext/<id>.png        8-bit: 0 = background, 1..59
    VOCdevkit/VOC2010/ImageSets/SegmentationContext/{train,val}.txt

Classes are in the order of their ids among the 459, which is alphabetical: what converters and published results use.
The site's 59_labels.txt has another order and other names for three of them (diningtable, bedcloth, clothes).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes.published import Found, Item, Published
from kappaseg_core.scenes.published.layout import id_table, listed, numbered_names, stored_values, to_ids, top_folder
from kappaseg_core.scenes.published.matlab import matrix, require_reader

TITLE = "PASCAL-Context, 60 classes with background (--options.classes 59: without)"
DOWNLOAD = (
    "unpack VOCtrainval_03-May-2010.tar (PASCAL VOC 2010) and trainval.tar.gz (PASCAL-Context) in one folder and give "
    "it as --source"
)
SPLITS = {"train": 4998, "val": 5105}
BACKGROUND = "background"
#: class → its id among the 459
RAW_IDS = {
    "aeroplane": 2, "bag": 9, "bed": 18, "bedclothes": 19, "bench": 22, "bicycle": 23, "bird": 25, "boat": 31,
    "book": 33, "bottle": 34, "building": 44, "bus": 45, "cabinet": 46, "car": 59, "cat": 65, "ceiling": 68,
    "chair": 72, "cloth": 80, "computer": 85, "cow": 98, "cup": 104, "curtain": 105, "dog": 113, "door": 115,
    "fence": 144, "floor": 158, "flower": 159, "food": 162, "grass": 187, "ground": 189, "horse": 207,
    "keyboard": 220, "light": 232, "motorbike": 258, "mountain": 259, "mouse": 260, "person": 284, "plate": 295,
    "platform": 296, "pottedplant": 308, "road": 324, "rock": 326, "sheep": 347, "shelves": 349, "sidewalk": 354,
    "sign": 355, "sky": 360, "snow": 366, "sofa": 368, "table": 397, "track": 415, "train": 416, "tree": 420,
    "truck": 424, "tvmonitor": 427, "wall": 440, "water": 445, "window": 454, "wood": 458,
}  # fmt: skip
CLASSES = (BACKGROUND, *RAW_IDS)
CLASSES_SHA256 = {
    59: "cd808465f06a16169edc25580073f0eda347e64f06cc1c2e24acd0b237f6497d",
    60: "e29ff1a0eaea71eb3e090f0ff6abdbcc592fa17f74b4a17ecc6d33c5a9daea4e",
}

#: value of a mask → class id of 60: of the published annotations (0 = nobody said), of converted ones
RAW = id_table({value: 0 for value in range(460)} | {raw: label for label, raw in enumerate(RAW_IDS.values(), 1)}, [])
CONVERTED = id_table({label: label for label in range(60)}, ignored=[255])


@dataclass(frozen=True)
class Options:
    """Is background a class."""

    classes: Literal[59, 60] = 60
    """60: whatever is none of the 59 classes is background, class 0; 59: it has no label"""


def published(options: Options) -> Published:
    return Published(options.classes, CLASSES_SHA256[options.classes], SPLITS)


def find(source: Path, options: Options) -> Found:
    root = top_folder(source, "VOCdevkit/VOC2010", "JPEGImages", DOWNLOAD)
    converted = root / "SegmentationClassContext"
    if converted.is_dir():
        masks, suffix, lists = converted, ".png", root / "ImageSets" / "SegmentationContext"
    else:
        masks, suffix, lists = _annotations(source, root), ".mat", root / "ImageSets" / "Main"
        _compare_names(masks.parent / "labels.txt")
    items = [
        Item(split, image_id, root / "JPEGImages" / f"{image_id}.jpg", masks / f"{image_id}{suffix}")
        for split in SPLITS
        for image_id in listed(lists / f"{split}.txt", DOWNLOAD)
    ]
    if suffix == ".mat":
        for item in items[:1]:
            require_reader(item.mask)
    return Found(CLASSES[-options.classes :], items)


def label_map(item: Item, options: Options) -> np.ndarray:
    if item.mask.suffix == ".mat":
        ids = to_ids(matrix(item.mask, "LabelMap"), RAW, item.mask)
    else:
        ids = to_ids(stored_values(item.mask), CONVERTED, item.mask)
    if options.classes == 60:
        return ids
    return np.where(ids == IGNORE, IGNORE, ids - 1)  # background, 0, becomes IGNORE = -1


def _annotations(source: Path, root: Path) -> Path:
    for folder in (root, source):
        if (folder / "trainval").is_dir():
            return folder / "trainval"
    raise UserError(f"{source} holds neither trainval/ nor SegmentationClassContext/ in VOC2010; {DOWNLOAD}")


def _compare_names(path: Path) -> None:
    """Raises UserError where the published list of the 459 has another name for one of our ids."""
    theirs = numbered_names(path)
    for name, raw in RAW_IDS.items():
        if theirs and theirs.get(raw) != name:
            raise UserError(f"{path} calls class {raw} {theirs.get(raw)!r}, wanted {name!r}; download it again")
