"""Cityscapes, fine annotations: 19 classes of the 34 that were drawn.

    leftImg8bit/{train,val}/<city>/<id>_leftImg8bit.png
    gtFine/{train,val}/<city>/<id>_gtFine_labelIds.png         8-bit: 0..33, as published
    gtFine/{train,val}/<city>/<id>_gtFine_labelTrainIds.png    or 0..18 and 255, where only those are there

<id> is <city>_<sequence>_<frame>. The labels of the test split were not published.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kappaseg_core.scenes.published import Found, Item, Published
from kappaseg_core.scenes.published.layout import (
    folders_in,
    id_table,
    names,
    pairs,
    stems,
    stored_values,
    to_ids,
    top_folder,
)

TITLE = "Cityscapes, fine annotations, 19 classes"
DOWNLOAD = (
    "unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (Cityscapes, after registration) in one folder"
)
SPLITS = {"train": 2975, "val": 500}
CLASSES = names("""
road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car,
truck, bus, train, motorcycle, bicycle
""")
CLASSES_SHA256 = "5995d02d6c574d515fa02371c8c2b5367f55cba8a732fed0567427c093f95adf"

PHOTO = "_leftImg8bit.png"
DRAWN, TRAINED = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
#: the drawn id of each class; the other ids of 0..33 are not evaluated
DRAWN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
TABLES = {
    DRAWN: id_table({drawn: label for label, drawn in enumerate(DRAWN_IDS)}, ignored=set(range(34)) - set(DRAWN_IDS)),
    TRAINED: id_table({label: label for label in range(19)}, ignored=[255]),
}


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


def published(options: Options) -> Published:
    return Published(len(CLASSES), CLASSES_SHA256, SPLITS)


def find(source: Path, options: Options) -> Found:
    root = top_folder(source, "cityscapes", "gtFine", DOWNLOAD)
    items = [
        item
        for split in SPLITS
        for city in folders_in(root / "leftImg8bit" / split, root / "gtFine" / split)
        for item in _city(split, root / "leftImg8bit" / split / city, root / "gtFine" / split / city)
    ]
    return Found(CLASSES, items)


def label_map(item: Item, options: Options) -> np.ndarray:
    table = TABLES[DRAWN if item.mask.name.endswith(DRAWN) else TRAINED]
    return to_ids(stored_values(item.mask), table, item.mask)


def _city(split: str, photos: Path, masks: Path) -> list[Item]:
    only_trained = stems(masks, TRAINED) and not stems(masks, DRAWN)
    return pairs(split, photos, masks, photo=PHOTO, mask=TRAINED if only_trained else DRAWN)
