"""LVIS v1 and COCO 2017 stuff with three images of train and two of val, one of which lies in train2017."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as masks

from kappaseg_core.scenes.published.coco_lvis import CLASSES
from tests.kappaseg_core.scenes.published.miniature import Miniature, draw_photo

#: COCO's own ids and names of what LVIS has too
SHARED = {
    92: "banner", 93: "blanket", 98: "cabinet", 108: "cupboard", 109: "curtain", 137: "napkin", 141: "pillow",
    153: "salad", 165: "table", 168: "towel",
}  # fmt: skip
LVIS_KEYS = {"license": 1, "flickr_url": "", "neg_category_ids": [], "not_exhaustive_category_ids": []}

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Drawn:
    """An image; things and stuff: category and box (left, top, right, bottom) in the files' order."""

    image_id: int
    split: str
    folder: str
    expected: Sequence[Sequence[int]]
    things: Sequence[tuple[int, Box]] = ()
    stuff: Sequence[tuple[int, Box]] = ()

    @property
    def size(self) -> tuple[int, int]:
        return len(self.expected), len(self.expected[0])


IMAGES = (
    # category 1203 lies under 300 and 2, both lie over stuff; 183 = other and the last row have no label
    Drawn(
        9, "train", "train2017",
        [[299, 299, 299, 1, 1, 1203], [299, 299, 299, 1, 1, -1], [1202, 1202, 1202, 1202, -1, -1], [-1] * 6],
        things=[(300, (0, 0, 3, 2)), (2, (2, 0, 5, 2)), (1203, (0, 0, 4, 3))],
        stuff=[(94, (1, 0, 6, 1)), (183, (4, 0, 6, 3)), (95, (0, 0, 2, 3))],
    ),
    Drawn(25, "train", "train2017", [[-1, -1, -1], [-1, -1, -1]]),
    Drawn(
        42, "train", "train2017", [[1283], [1282], [1216]],
        stuff=[(182, (0, 0, 1, 1)), (181, (0, 1, 1, 2)), (110, (0, 2, 1, 3))],
    ),
    # blanket and cabinet: LVIS' 110 and 181, or what the chained replacement makes of them
    Drawn(
        139, "val", "val2017", [[109, 180, 49, 1107, 1]],
        things=[(2, (4, 0, 5, 1))],
        stuff=[(93, (0, 0, 1, 1)), (98, (1, 0, 2, 1)), (92, (2, 0, 3, 1)), (168, (3, 0, 5, 1))],
    ),
    Drawn(30, "val", "train2017", [[7, 7], [1049, 1049]], things=[(8, (0, 0, 2, 1))], stuff=[(165, (0, 0, 2, 2))]),
)  # fmt: skip


def make(path: Path, remap: str = "corrected") -> Miniature:
    for split in ("train", "val"):
        images = [drawn for drawn in IMAGES if drawn.split == split]
        _write(path / f"lvis_v1_{split}.json", images, _things_of, _lvis_categories(), LVIS_KEYS)
    for folder in ("train2017", "val2017"):
        images = [drawn for drawn in IMAGES if drawn.folder == folder]
        _write(path / "annotations" / f"stuff_{folder}.json", images, _stuff_of, _stuff_categories(), {})
    photos = {
        f"{drawn.image_id:012d}": draw_photo(path / drawn.folder / f"{drawn.image_id:012d}.jpg", drawn.size, number)
        for number, drawn in enumerate(IMAGES)
    }

    def spoil() -> Sequence[str]:
        change(path / "lvis_v1_train.json", lambda content: content["annotations"][1].update(category_id=1204))
        return "lvis_v1_train.json", "annotation 2 is of category 1204", "1..1203"

    splits = {
        split: {f"{drawn.image_id:012d}": drawn.expected for drawn in IMAGES if drawn.split == split}
        for split in ("train", "val")
    }
    names = {0: "aerosol_can", 49: "banner", 109: "blanket", 1202: "zucchini", 1203: "branch", 1283: "wood"}
    if remap == "published":
        splits["val"]["000000000139"] = [[1216, 1282, 49, 1107, 1]]
        names |= {1216: "desk-stuff", 1282: "window-other"}
    return Miniature("coco_lvis", path, splits, photos, names, spoil, {"remap": remap})


def change(path: Path, edit: Any) -> None:
    """Read a JSON file, have it edited, write it."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def polygon(box: Box) -> list[float]:
    left, top, right, bottom = map(float, box)
    return [left, top, right, top, right, bottom, left, bottom]


def _things_of(drawn: Drawn) -> list[tuple[int, Any]]:
    return [(category, [polygon(box)]) for category, box in drawn.things]


def _stuff_of(drawn: Drawn) -> list[tuple[int, Any]]:
    """Compressed run lengths, as text."""
    found = []
    for category, (left, top, right, bottom) in drawn.stuff:
        mask = np.zeros(drawn.size, np.uint8, order="F")
        mask[top:bottom, left:right] = 1
        runs = masks.encode(mask)
        found.append((category, {"size": list(runs["size"]), "counts": runs["counts"].decode()}))
    return found


def _lvis_categories() -> list[dict[str, Any]]:
    return [{"frequency": "c", "id": place, "synset": "", "name": CLASSES[place - 1]} for place in range(1, 1204)]


def _stuff_categories() -> list[dict[str, Any]]:
    own = iter(CLASSES[1203:])
    names = [SHARED[category] if category in SHARED else next(own) for category in range(92, 183)]
    return [{"id": 92 + place, "name": name} for place, name in enumerate([*names, "other"])]


def _write(path: Path, images: Sequence[Drawn], shapes_of: Any, categories: Sequence[Any], keys: Any) -> None:
    """Annotations of the images in turn, first the first of each: as in the files, they do not lie together."""
    shapes = [(place, drawn, shape) for drawn in images for place, shape in enumerate(shapes_of(drawn))]
    annotations = [
        {"area": 1.5, "id": number, "segmentation": segmentation, "image_id": drawn.image_id, "category_id": category}
        for number, (_, drawn, (category, segmentation)) in enumerate(sorted(shapes, key=lambda shape: shape[0]), 1)
    ]
    records = [
        {
            "id": drawn.image_id,
            "height": drawn.size[0],
            "width": drawn.size[1],
            "coco_url": f"http://images.cocodataset.org/{drawn.folder}/{drawn.image_id:012d}.jpg",
            **keys,
        }
        for drawn in images
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"info": {"year": 2020}, "images": records, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


VARIANTS = {"": make, "published remap": functools.partial(make, remap="published")}
