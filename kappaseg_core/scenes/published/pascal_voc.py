"""PASCAL VOC 2012 segmentation, 21 classes with background.

    VOCdevkit/VOC2012/JPEGImages/<id>.jpg
    VOCdevkit/VOC2012/SegmentationClass/<id>.png               indexed: 0 background, 1..20, 255 = void (borders)
    VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt

With --options.train trainaug the training split is the usual enlarged one, whose masks come from SBD:

    VOCdevkit/VOC2012/SegmentationClassAug/<id>.png            grey: 0..20, 255
    VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt      ids, or lines that begin with the path of the photo
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kappaseg_core.scenes.published import Found, Item, Published
from kappaseg_core.scenes.published.layout import id_table, listed, names, stored_values, to_ids, top_folder

TITLE = "PASCAL VOC 2012, 21 classes with background (--options.train trainaug: with the masks of SBD)"
DOWNLOAD = "unpack VOCtrainval_11-May-2012.tar (PASCAL VOC 2012) and give the folder that holds VOCdevkit as --source"
AUGMENTED = (
    "unpack SegmentationClassAug.zip in VOC2012/ and put trainaug.txt beside train.txt, in ImageSets/Segmentation/"
)
SPLITS = {"train": 1464, "val": 1449}
TRAIN_AUG = 10582
CLASSES = names("""
background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike,
person, pottedplant, sheep, sofa, train, tvmonitor
""")
CLASSES_SHA256 = "301e5e4e2a9a7ab6bfd6c7e2b1d381d4dd465ddedf787b4b4ed802b3366deb6c"
#: training split → folder of its masks, what to download
MASKS = {"train": ("SegmentationClass", DOWNLOAD), "trainaug": ("SegmentationClassAug", AUGMENTED)}

TABLE = id_table({label: label for label in range(21)}, ignored=[255])


@dataclass(frozen=True)
class Options:
    """Which of the training splits."""

    train: Literal["train", "trainaug"] = "train"
    """train: the published 1,464 images; trainaug: 10,582 images, with the masks of SegmentationClassAug"""


def published(options: Options) -> Published:
    splits = {**SPLITS, "train": TRAIN_AUG} if options.train == "trainaug" else SPLITS
    return Published(len(CLASSES), CLASSES_SHA256, splits)


def find(source: Path, options: Options) -> Found:
    masks, download = MASKS[options.train]
    root = top_folder(source, "VOCdevkit/VOC2012", masks, download)
    lists = root / "ImageSets" / "Segmentation"
    return Found(
        CLASSES,
        [
            *_items("train", root, masks, listed(lists / f"{options.train}.txt", download)),
            *_items("val", root, "SegmentationClass", listed(lists / "val.txt", download)),
        ],
    )


def label_map(item: Item, options: Options) -> np.ndarray:
    return to_ids(stored_values(item.mask), TABLE, item.mask)


def _items(split: str, root: Path, masks: str, lines: list[str]) -> list[Item]:
    image_ids = [Path(line.split()[0]).stem for line in lines]
    return [
        Item(split, image_id, root / "JPEGImages" / f"{image_id}.jpg", root / masks / f"{image_id}.png")
        for image_id in image_ids
    ]
