"""ADE20K, panoptic: the 150 classes of the scene parsing benchmark, 100 of them things whose objects are told apart.

    ADEChallengeData2016/images/{training,validation}/ADE_train_00000001.jpg …
    ADEChallengeData2016/annotations/{training,validation}/….png            8-bit: 0 = other, 1..150
    ADEChallengeData2016/annotations_instance/{training,validation}/….png   RGB: red 1..100 = thing, green = object

As in the script that published results are made with, stuff is taken from the label maps, and objects from the instance
maps, above it. Pixels that the label map gives to a thing and no object covers keep their label here and are in no
object, which makes them void in the panoptic truth, as they are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.flaws import SizesDiffer
from kappaseg_core.scenes.images import colours
from kappaseg_core.scenes.published import Found, Item, Published, ade20k
from kappaseg_core.scenes.published.layout import id_table, mask_bytes, names, to_ids, top_folder

TITLE = "ADE20K panoptic, 100 things and 50 kinds of stuff"
DOWNLOAD = (
    "unpack ADEChallengeData2016.zip (MIT scene parsing benchmark), in its folder annotations_instance.tar (of 2017), "
    "and give the folder as --source"
)
STUFF = names("""
wall, building, sky, floor, tree, ceiling, road, grass, sidewalk, earth, mountain, plant, water, house, sea, rug, field,
rock, base, sand, skyscraper, grandstand, path, runway, stairway, river, bridge, blind, hill, bar, hovel, tower, dirt
track, land, escalator, buffet, poster, stage, conveyer belt, canopy, swimming pool, waterfall, tent, cradle, tank,
lake, blanket, pier, crt screen, shower
""")
THINGS = tuple(name not in STUFF for name in ade20k.CLASSES)
INSTANCES = "annotations_instance"

#: which thing (red) → class id; things are numbered in the order of the classes
TABLE = id_table({1 + number: int(label) for number, label in enumerate(np.flatnonzero(THINGS))}, ignored=[])


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


def published(options: Options) -> Published:
    return Published(len(ade20k.CLASSES), ade20k.CLASSES_SHA256, ade20k.SPLITS)


def find(source: Path, options: Options) -> Found:
    root = top_folder(source, "ADEChallengeData2016", INSTANCES, DOWNLOAD)
    found = ade20k.find(root, ade20k.Options())
    return Found(found.class_names, found.items, THINGS)


def label_map(item: Item, options: Options) -> tuple[np.ndarray, np.ndarray]:
    mask = ade20k.label_map(item, ade20k.Options())
    path: Path = item.mask.parents[2] / INSTANCES / item.mask.parent.name / item.mask.name
    red, green, _ = colours(mask_bytes(path), f"instance map {path}").transpose(2, 0, 1).astype(np.int32)
    if red.shape != mask.shape:
        sizes = "{}x{}".format(*red.shape), "{}x{}".format(*mask.shape)
        raise SizesDiffer(f"instance map {path} is {sizes[0]}, its label map is {sizes[1]}; unpack both archives again")
    mask[green > 0] = to_ids(red[green > 0], TABLE, path)
    _refuse_shared_numbers(mask, green, path)
    return mask, green


def _refuse_shared_numbers(mask: np.ndarray, green: np.ndarray, path: Path) -> None:
    """Raises UserError where an object is of two classes."""
    objects = green[green > 0] * len(ade20k.CLASSES) + mask[green > 0]
    numbers = np.unique(objects) // len(ade20k.CLASSES)
    twice = numbers[1:][numbers[1:] == numbers[:-1]]
    if twice.size:
        raise UserError(f"instance map {path} has object {twice[0]} of two classes; unpack the archive again")
