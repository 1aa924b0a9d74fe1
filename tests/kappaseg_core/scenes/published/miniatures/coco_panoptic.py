"""COCO's panoptic set with two training images and one for validation, as unpacked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kappaseg_core.scenes.published.coco_panoptic import CLASSES, THINGS
from tests.kappaseg_core.scenes import panoptic_miniature
from tests.kappaseg_core.scenes.published.miniature import Miniature

#: published ids: 1 person (label 0), 90 toothbrush (79), 92 banner (80), 200 rug-merged (132)
GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
STUFF_IDS = (92, 93, *range(1000, 1050), 200)  # those between do not matter here
IDS = (*(raw for raw in range(1, 91) if raw not in GAPS), *STUFF_IDS)
CATEGORIES = [
    {"id": raw, "name": name, "isthing": int(label < THINGS), "supercategory": "any"}
    for label, (raw, name) in enumerate(zip(IDS, CLASSES, strict=True))
]
BIG = 300 + 65536
IMAGES: dict[str, dict[str, tuple[list[list[int]], list[tuple[int, int, int]]]]] = {
    "train": {
        "000000000009": ([[0, 8, 8], [BIG, BIG, 7]], [(8, 200, 0), (BIG, 1, 0), (7, 1, 0)]),
        "000000000025": ([[5, 5], [6, 6], [6, 0]], [(5, 90, 1), (6, 92, 0)]),
    },
    "val": {"000000000139": ([[4, 4, 3]], [(3, 90, 0), (4, 1, 0)])},
}
EXPECTED = {
    "train": {"000000000009": [[-1, 132, 132], [0, 0, 0]], "000000000025": [[79, 79], [80, 80], [80, -1]]},
    "val": {"000000000139": [[0, 0, 79]]},
}
INSTANCES = {
    "train": {"000000000009": [[0, 0, 0], [2, 2, 3]], "000000000025": [[-1, -1], [0, 0], [0, 0]]},
    "val": {"000000000139": [[2, 2, 1]]},
}


def make(
    path: Path, *, photos: str = ".", annotations: str = "annotations", pictures: str = "annotations"
) -> Miniature:
    found = {}
    for split, images in IMAGES.items():
        folder, name = path / photos / f"{split}2017", f"panoptic_{split}2017"
        file = panoptic_miniature.draw(
            path / annotations / f"{name}.json", images, photos=folder, categories=CATEGORIES
        )
        if pictures != annotations:
            file.with_suffix("").rename(path / pictures / name)
        found |= {image_id: folder / f"{image_id}.jpg" for image_id in images}

    def spoil() -> Sequence[str]:
        file = path / pictures / "panoptic_train2017" / "000000000025.png"
        panoptic_miniature.save_picture(file, [[5, 5], [6, 6], [77, 0]])
        return str(file), "has segment 77, which its annotation does not list"

    names = {0: "person", 79: "toothbrush", 80: "banner", 132: "rug-merged"}
    return Miniature("coco_panoptic", path, EXPECTED, found, names, spoil, instances=INSTANCES)


def elsewhere(path: Path) -> Miniature:
    return make(path, photos="images", annotations="annotations", pictures=".")


def with_other_things(path: Path) -> Path:
    """The JSON file of val, in which a thing is stuff."""
    file = path / "annotations" / "panoptic_val2017.json"
    content = json.loads(file.read_text())
    content["categories"][3]["isthing"] = 0
    file.write_text(json.dumps(content))
    return file


VARIANTS = {"": make, "elsewhere": elsewhere}
