"""COCO-Stuff 10k, version 1.1: 171 classes.

    cocostuff-10k-v1.1/images/COCO_train2014_000000000077.jpg …
    cocostuff-10k-v1.1/annotations/COCO_train2014_000000000077.mat    S: 0 = no label, 1..182, of which 11 are unused
    cocostuff-10k-v1.1/imageLists/{train,test}.txt                    test becomes our val
    cocostuff-10k-v1.1/cocostuff-labels.txt                           compared with our names where it is there

Annotations are MATLAB files of version 5; files of version 7.3 are read too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kappaseg_core.scenes.published import Found, Item, Published
from kappaseg_core.scenes.published.coco_stuff_classes import CLASS_IDS, CLASSES, CLASSES_SHA256, compare_names
from kappaseg_core.scenes.published.layout import id_table, listed, to_ids, top_folder
from kappaseg_core.scenes.published.matlab import matrix, require_reader

TITLE = "COCO-Stuff 10k v1.1, 171 classes"
DOWNLOAD = "unpack cocostuff-10k-v1.1.zip (COCO-Stuff) in a folder of its own and give that folder as --source"
SPLITS = {"train": 9000, "val": 1000}

TABLE = id_table(CLASS_IDS, ignored=[0])


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


def published(options: Options) -> Published:
    return Published(len(CLASSES), CLASSES_SHA256, SPLITS)


def find(source: Path, options: Options) -> Found:
    root = top_folder(source, "cocostuff-10k-v1.1", "imageLists", DOWNLOAD)
    compare_names(root / "cocostuff-labels.txt")
    lists = {"train": "train.txt", "val": "test.txt"}
    items = [
        Item(split, image_id, root / "images" / f"{image_id}.jpg", root / "annotations" / f"{image_id}.mat")
        for split, name in lists.items()
        for image_id in listed(root / "imageLists" / name, DOWNLOAD)
    ]
    for item in items[:1]:
        require_reader(item.mask)
    return Found(CLASSES, items)


def label_map(item: Item, options: Options) -> np.ndarray:
    return to_ids(matrix(item.mask, "S"), TABLE, item.mask)
