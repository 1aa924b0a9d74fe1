"""ADE20K, the 150 classes of the scene parsing benchmark (SceneParse150, 2016).

    ADEChallengeData2016/images/{training,validation}/ADE_train_00000001.jpg …
    ADEChallengeData2016/annotations/{training,validation}/….png    8-bit: 0 = other, 1..150
    ADEChallengeData2016/objectInfo150.txt                          names; compared with ours where it is there

Classes carry one of their published synonyms, as is usual: the first, but for television receiver.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.published import Found, Item, Published
from kappaseg_core.scenes.published.layout import id_table, listed, names, pairs, stored_values, to_ids, top_folder

TITLE = "ADE20K, 150 classes (ADEChallengeData2016)"
DOWNLOAD = "unpack ADEChallengeData2016.zip (MIT scene parsing benchmark) and give its folder as --source"
SPLITS = {"train": 20210, "val": 2000}
CLASSES = names("""
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench,
countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel,
light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel,
pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt,
canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball,
food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood,
sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator,
glass, clock, flag
""")
CLASSES_SHA256 = "f9dbd8a75a0722c971d8c82db76dc205e06cb422d98153f4e5bbf90408ef5438"
OWN_NAMES = "objectInfo150.txt"

TABLE = id_table({value: value - 1 for value in range(1, 151)}, ignored=[0])


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


def published(options: Options) -> Published:
    return Published(len(CLASSES), CLASSES_SHA256, SPLITS)


def find(source: Path, options: Options) -> Found:
    root = top_folder(source, "ADEChallengeData2016", "annotations", DOWNLOAD)
    if (root / OWN_NAMES).exists():
        _compare_names(root / OWN_NAMES)
    items = [
        item
        for split, folder in (("train", "training"), ("val", "validation"))
        for item in pairs(split, root / "images" / folder, root / "annotations" / folder)
    ]
    return Found(CLASSES, items)


def label_map(item: Item, options: Options) -> np.ndarray:
    return to_ids(stored_values(item.mask), TABLE, item.mask)


def _compare_names(path: Path) -> None:
    """Raises UserError where the set's own list has other classes.

    Its last column holds synonyms: "2 <tab> 0.1072 <tab> … <tab> building, edifice", or in a table of commas
    "2,0.1072,…,building; edifice", which goes by the same name.
    """
    for line, ours in zip(listed(path, DOWNLOAD)[1:], CLASSES, strict=False):
        theirs = line.split("\t")[-1] if "\t" in line else line.split(",")[-1]
        if ours not in names(theirs.replace(";", ",")):
            raise UserError(f"{path} has the class {theirs!r} where ADE20K has {ours!r}; unpack the archive again")
