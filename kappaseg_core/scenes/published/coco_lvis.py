"""COCO+LVIS, 1,284 classes: the 1,203 things of LVIS v1 and, where there is none, the stuff of COCO 2017.

    lvis_v1_{train,val}.json                   LVIS v1: polygons, categories 1..1203
    annotations/stuff_{train,val}2017.json     COCO 2017: run lengths, categories 92..182, and 183 = other
    {train,val}2017/000000000139.jpg …         the photos of COCO 2017

Value = LVIS' category 1..1203; ten kinds of stuff that LVIS has too have its category as well, the other 81 have
1204..1284 in the order of their categories. Class id = value - 1. Among the annotations of one file the first wins.
The splits are LVIS' own: 15,000 of val's images lie in train2017. Image 429995 of train has no label at all; it stays,
unlabelled, so that the split counts as LVIS published it (ESSNet, which made this set, leaves it out).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.progress import Meter
from kappaseg_core.scenes.published import Found, Item, Published
from kappaseg_core.scenes.published.painting import paint, require_pycocotools
from kappaseg_core.scenes.published.records import Places, read_records, records

TITLE = "COCO+LVIS, 1,284 classes (LVIS v1, COCO 2017 stuff)"
DOWNLOAD = (
    "unpack COCO's train2017.zip, val2017.zip and stuff_annotations_trainval2017.zip and LVIS' "
    "lvis_v1_{train,val}.json.zip into one folder and give it as --source"
)
SPLITS = {"train": 100170, "val": 19809}
CLASSES = tuple(Path(__file__).with_suffix(".txt").read_text("utf-8").splitlines())
CLASSES_SHA256 = "22969bf64d1c0336087c3a2b8217f4b1aab4e14be970b64b867feeb2ec7ac3cd"

THINGS = range(1, 1204)
STUFF = range(92, 183)
OTHER = 183
#: stuff that LVIS has too → its category there
SHARED = {92: 50, 93: 110, 98: 181, 108: 346, 109: 350, 137: 713, 141: 804, 153: 904, 165: 1050, 168: 1108}

#: where the annotation files are looked for, below the source
PLACES = (".", "annotations", "images", "lvis", "coco", "coco/annotations")
#: and the folders of photos; annotations/train2017 holds masks, where COCO-Stuff 164k lies as mmseg has it
PHOTO_PLACES = (".", "images", "coco", "coco/images")


@dataclass(frozen=True)
class Options:
    """Variants of the set."""

    remap: Literal["corrected", "published"] = "corrected"
    """published: as ESSNet's generator makes it, where the stuff blanket is desk-stuff and the stuff cabinet is
    window-other. It replaces one category after the other in place, so that 93 → 110 goes on to 1217 and 98 → 181 to
    1283. All else is the same. (What the generator gets wrong by chance is not repeated: values above 255 that wrap, or
    fail under NumPy 2, where an image has one stuff annotation.)"""


@dataclass(frozen=True)
class Annotations:
    """What the label map of an image is made of. things, stuff: where its records lie in their files, i64 [n, 2]."""

    height: int
    width: int
    things_file: Path
    things: np.ndarray
    stuff_file: Path
    stuff: np.ndarray


def published(options: Options) -> Published:
    return Published(len(CLASSES), CLASSES_SHA256, SPLITS)


def find(source: Path, options: Options) -> Found:
    """One pass over each of the four annotation files; what is kept are places, 24 bytes an annotation."""
    require_pycocotools()
    photos = {folder: _below(source, folder, PHOTO_PLACES, Path.is_dir) for folder in ("train2017", "val2017")}
    things_files = {split: _below(source, f"lvis_v1_{split}.json", PLACES, Path.is_file) for split in SPLITS}
    stuff_files = {folder: _below(source, f"stuff_{folder}.json", PLACES, Path.is_file) for folder in photos}
    meant = stuff_values("corrected")
    stuff_names = {category: CLASSES[meant[category] - 1] for category in STUFF}
    stuff = {folder: _read(path, stuff_names)[0] for folder, path in stuff_files.items()}
    items = []
    for split, path in things_files.items():
        things, images = _read(path, {category: CLASSES[category - 1] for category in THINGS})
        items += [_item(split, path, image, photos, things, stuff) for image in images]
    return Found(CLASSES, items)


def label_map(item: Item, options: Options) -> np.ndarray:
    made: Annotations = item.mask
    things = _painted(made, made.things_file, made.things, THINGS)
    stuff = _painted(made, made.stuff_file, made.stuff, range(STUFF.start, OTHER + 1))
    values = np.where(things > 0, things, stuff_values(options.remap)[stuff])
    return values.astype(np.int32, order="C") - 1  # value 0 becomes IGNORE = -1


def stuff_values(remap: str) -> np.ndarray:
    """COCO's stuff category → value, u16 [184]; 0 where there is no stuff, and for "other"."""
    own = [category for category in STUFF if category not in SHARED]
    meant = SHARED | {category: THINGS.stop + place for place, category in enumerate(own)}
    table = np.zeros(OTHER + 1, np.uint16)
    table[STUFF] = STUFF
    if remap == "published":
        for category in STUFF:
            table[table == category] = meant[category]
    else:
        table[STUFF] = [meant[category] for category in STUFF]
    return table


def _below(source: Path, name: str, places: Sequence[str], is_there: Callable[[Path], bool]) -> Path:
    for place in places:
        if is_there(source / place / name):
            return source / place / name
    raise UserError(f"{source} holds no {name} (looked in {', '.join(places)}); {DOWNLOAD}")


def _read(path: Path, names: Mapping[int, str]) -> tuple[Places, list[dict[str, Any]]]:
    """Where the annotations lie, and the records of the images. Raises UserError for categories of other names."""
    image_ids, spans, images, unnamed = array("q"), array("q"), [], set(names)
    with Meter(f"reading {path.name}", path.stat().st_size >> 20, unit="MiB") as meter:
        for key, value, start, end in records(path):
            try:
                if key == "annotations":
                    image_ids.append(value["image_id"])
                    spans.extend((start, end))
                elif key == "images":
                    images.append(value)
                elif key == "categories" and value["id"] in names:
                    _compare_name(path, value["id"], value["name"], names[value["id"]])
                    unnamed.remove(value["id"])
            except (KeyError, TypeError, ValueError) as error:
                what = f"the record of {key} at byte {start} is none ({error!r})"
                raise UserError(f"{path}: {what}; download it again") from None
            if end >> 20 > meter.done:
                meter.advance((end >> 20) - meter.done)
    if unnamed:
        raise UserError(f"{path} lacks {len(unnamed)} categories, like {min(unnamed)}; download it again")
    return Places.of(path, image_ids, spans), images


def _compare_name(path: Path, category: int, name: str, ours: str) -> None:
    if name != ours:
        raise UserError(f"{path} has category {category} = {name!r}, wanted {ours!r}; is it LVIS v1 and COCO 2017?")


def _item(
    split: str,
    path: Path,
    image: dict[str, Any],
    photos: Mapping[str, Path],
    things: Places,
    stuff: Mapping[str, Places],
) -> Item:
    """An image of LVIS; the folder of its photo is the last but one part of its address at COCO."""
    try:
        image_id, size = int(image["id"]), (int(image["height"]), int(image["width"]))
        folder = image["coco_url"].split("/")[-2]
        there = stuff[folder]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: an image is none of COCO 2017 ({error!r}): {image}; download it again") from None
    name = f"{image_id:012d}"
    mask = Annotations(*size, path, things.at(image_id), there.path, there.at(image_id))
    return Item(split, name, photos[folder] / f"{name}.jpg", mask)


def _painted(made: Annotations, path: Path, spans: np.ndarray, categories: range) -> np.ndarray:
    annotations = read_records(path, spans)
    for annotation in annotations:
        category = annotation.get("category_id")
        if category not in categories:
            known = f"{categories[0]}..{categories[-1]}"
            raise UserError(f"{path}: annotation {annotation.get('id')} is of category {category}, wanted {known}")
    return paint(annotations, made.height, made.width, str(path))
