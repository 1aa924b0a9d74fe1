"""COCO-Stuff on all of COCO 2017: 171 classes.

    {train,val}2017/000000000139.jpg                              or in images/
    stuffthingmaps_trainval2017/{train,val}2017/….png             8-bit: 0..181, 255 = no label; or in annotations/
    …/000000000139_labelTrainIds.png                              or 0..170 and 255, where only those are there
    labels.txt                                                    compared with our names where it is there

The maps store ids that are smaller by 1 than those of the list (labels.txt), where 0 is "unlabeled".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.published import Found, Item, Published
from kappaseg_core.scenes.published.coco_stuff_classes import CLASS_IDS, CLASSES, CLASSES_SHA256, compare_names
from kappaseg_core.scenes.published.layout import id_table, pairs, stems, stored_values, to_ids

TITLE = "COCO-Stuff 164k (COCO 2017), 171 classes"
DOWNLOAD = (
    "unpack train2017.zip and val2017.zip (COCO) in one folder, stuffthingmaps_trainval2017.zip (COCO-Stuff) in its "
    "sub-folder stuffthingmaps_trainval2017, and give it as --source"
)
SPLITS = {"train": 118287, "val": 5000}

CONVERTED = "_labelTrainIds"
RAW_TABLE = id_table({raw - 1: label for raw, label in CLASS_IDS.items()}, ignored=[255])
CONVERTED_TABLE = id_table({label: label for label in range(171)}, ignored=[255])


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


def published(options: Options) -> Published:
    return Published(len(CLASSES), CLASSES_SHA256, SPLITS)


def find(source: Path, options: Options) -> Found:
    compare_names(source / "labels.txt")
    items = [
        item
        for split in SPLITS
        for item in _split(
            split,
            _folder(source, (".", "images"), f"{split}2017"),
            _folder(source, ("stuffthingmaps_trainval2017", "annotations"), f"{split}2017"),
        )
    ]
    if not items:
        raise UserError(f"{source} holds no val2017 (nor images/val2017); {DOWNLOAD}")
    return Found(CLASSES, items)


def label_map(item: Item, options: Options) -> np.ndarray:
    table = CONVERTED_TABLE if item.mask.stem.endswith(CONVERTED) else RAW_TABLE
    return to_ids(stored_values(item.mask), table, item.mask)


def _split(split: str, photos: Path, masks: Path) -> list[Item]:
    """Converters write their maps beside the published ones, which then count."""
    there = stems(masks, ".png")
    if there and all(stem.endswith(CONVERTED) for stem in there):
        return pairs(split, photos, masks, mask=f"{CONVERTED}.png")
    return [item for item in pairs(split, photos, masks) if not item.image_id.endswith(CONVERTED)]


def _folder(source: Path, parents: tuple[str, ...], name: str) -> Path:
    """The first that is there; where none is, the first."""
    folders = [source / parent / name for parent in parents]
    return next((folder for folder in folders if folder.is_dir()), folders[0])
