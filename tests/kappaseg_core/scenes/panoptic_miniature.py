"""A few drawn images in the files of COCO's panoptic segmentation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES: list[dict[str, Any]] = [
    {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60], "supercategory": "person"},
    {"id": 92, "name": "banner", "isthing": 0, "color": [255, 255, 128], "supercategory": "textile"},
    {"id": 3, "name": "car", "isthing": 1, "color": [0, 0, 142], "supercategory": "vehicle"},
]
#: ids of segments: above 16 and 8 bits, and small ones
BIG, MIDDLE = 3 + 256 * 2 + 65536, 256

Listed = Sequence[tuple[int, int, int]]  # (segment id, category id, crowd)


def save_picture(path: Path, rows: Sequence[Sequence[int]]) -> None:
    """Segment ids as colours."""
    ids = np.array(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(path)


def draw(
    file: Path,
    images: Mapping[str, tuple[Sequence[Sequence[int]], Listed]],
    *,
    photos: Path | None = None,
    categories: Sequence[Mapping[str, Any]] = CATEGORIES,
    **more: Any,
) -> Path:
    """A JSON file and its folder of pictures, and photographs where a folder for them is given.

    images: image id → (rows of segment ids, what is listed).
    """
    annotations = []
    for number, (image_id, (rows, listed)) in enumerate(images.items()):
        save_picture(file.with_suffix("") / f"{image_id}.png", rows)
        if photos is not None:
            photos.mkdir(parents=True, exist_ok=True)
            picture = np.random.default_rng(number).integers(0, 256, (len(rows), len(rows[0]), 3), np.uint8)
            Image.fromarray(picture).save(photos / f"{image_id}.jpg")
        areas = {segment: int((np.array(rows) == segment).sum()) for segment, *_ in listed}
        info = [
            {"id": segment, "category_id": category, "iscrowd": crowd, "bbox": [0, 0, 1, 1], "area": areas[segment]}
            for segment, category, crowd in listed
        ]
        annotations.append({"segments_info": info, "file_name": f"{image_id}.png", "image_id": number})
    names = [{"id": number, "file_name": f"{image_id}.jpg"} for number, image_id in enumerate(images)]
    content = {"info": {"year": 2017}, "licenses": [{"id": 1}], "images": names if photos else [],
               "annotations": annotations, "categories": list(categories), **more}  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, ensure_ascii=False))
    return file


IMAGES: dict[str, tuple[Sequence[Sequence[int]], Listed]] = {
    "000000000139": (
        [[7, 7, BIG, BIG, 0], [7, MIDDLE, MIDDLE, 9, 9]],
        [(BIG, 1, 0), (7, 92, 0), (MIDDLE, 1, 0), (9, 3, 1)],
    ),
    "000000000285": ([[0, 0], [5, 5], [5, 5]], [(5, 3, 0)]),
}
MASKS = {"000000000139": [[1, 1, 0, 0, -1], [1, 0, 0, 2, 2]], "000000000285": [[-1, -1], [2, 2], [2, 2]]}
INSTANCES = {"000000000139": [[0, 0, 1, 1, 0], [0, 3, 3, -1, -1]], "000000000285": [[0, 0], [1, 1], [1, 1]]}
