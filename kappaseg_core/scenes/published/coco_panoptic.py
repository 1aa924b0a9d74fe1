"""COCO 2017, panoptic: 80 things, whose objects are told apart, and 53 kinds of stuff.

    {train,val}2017/000000000139.jpg                                     or in images/
    annotations/panoptic_{train,val}2017.json                            or beside the photos' folders
    annotations/panoptic_{train,val}2017/000000000139.png                as the JSON file is named, in either place

Class ids are places in the list of categories, which go by their ids. VOID has no label here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.panoptic_files import Annotations, Picture, read_annotations
from kappaseg_core.scenes.published import Found, Item, Published
from kappaseg_core.scenes.published.coco_stuff_classes import CLASSES as STUFF_CLASSES
from kappaseg_core.scenes.published.layout import names

TITLE = "COCO 2017 panoptic, 80 things and 53 kinds of stuff"
DOWNLOAD = (
    "unpack train2017.zip, val2017.zip and panoptic_annotations_trainval2017.zip (COCO) in one folder, then the two "
    "archives of pictures in its sub-folder annotations, and give the folder as --source"
)
SPLITS = {"train": 118287, "val": 5000}
THINGS = 80
CLASSES = (*STUFF_CLASSES[:THINGS], *names("""
banner, blanket, bridge, cardboard, counter, curtain, door-stuff, floor-wood, flower, fruit, gravel, house, light,
mirror-stuff, net, pillow, platform, playingfield, railroad, river, road, roof, sand, sea, shelf, snow, stairs, tent,
towel, wall-brick, wall-stone, wall-tile, wall-wood, water-other, window-blind, window-other, tree-merged,
fence-merged, ceiling-merged, sky-other-merged, cabinet-merged, table-merged, floor-other-merged, pavement-merged,
mountain-merged, grass-merged, dirt-merged, paper-merged, food-other-merged, building-other-merged, rock-merged,
wall-other-merged, rug-merged
"""))  # fmt: skip
CLASSES_SHA256 = "a670bc7c1167e453f040d13f39199fe2c5f73314851fb4c04813bbecc0f2714b"


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


def published(options: Options) -> Published:
    return Published(len(CLASSES), CLASSES_SHA256, SPLITS)


def find(source: Path, options: Options) -> Found:
    files = {split: _annotations(source, f"panoptic_{split}2017") for split in SPLITS}
    read = {split: found for split, found in files.items() if found is not None}
    if not read:
        raise UserError(f"{source} holds no annotations/panoptic_val2017.json; {DOWNLOAD}")
    first = next(iter(read.values())).categories
    for found in read.values():
        if found.categories != first or first.things != (*[True] * THINGS, *[False] * (len(CLASSES) - THINGS)):
            raise UserError(f"{found.path} has other categories or other things than COCO's; unpack it again")
    items = [item for split, found in read.items() for item in _items(split, found, _photos(source, split))]
    return Found(first.names, items, first.things)


def label_map(item: Item, options: Options) -> tuple[np.ndarray, np.ndarray]:
    picture: Picture = item.mask
    return picture.maps()


def _annotations(source: Path, name: str) -> Annotations | None:
    """A JSON file with the folder of its pictures, wherever they are; None where there is no such file."""
    places = [source / "annotations" / name, source / name]
    file = next((place.with_suffix(".json") for place in places if place.with_suffix(".json").exists()), None)
    return None if file is None else read_annotations(file, next((place for place in places if place.is_dir()), None))


def _photos(source: Path, split: str) -> Path:
    inside = source / "images" / f"{split}2017"
    return inside if inside.is_dir() else source / f"{split}2017"


def _items(split: str, found: Annotations, photos: Path) -> Iterator[Item]:
    for index, name in enumerate(found.scene_photos()):
        yield Item(split, Path(name).stem, photos / name, found[index])
