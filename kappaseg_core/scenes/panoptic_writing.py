"""Writing the files that panoptic_files.py describes and reads: FOLDER/panoptic.json and FOLDER/panoptic/ID.png."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kappaseg_core.files import write_atomic, write_text, writing
from kappaseg_core.scenes.panoptic_files import Categories
from kappaseg_core.segments import Segments

#: the JSON file, and the folder beside it
FILE, FOLDER = "panoptic.json", "panoptic"


def write_segments(folder: Path, image_id: str, segments: Segments, categories: Categories) -> dict[str, Any]:
    """Write the picture of an image to folder/panoptic, which must be there, and give its annotation for
    `write_annotations`. Segments without a pixel are left out. Raises UserError."""
    file, areas = f"{image_id}.png", segments.areas().tolist()
    save_ids(segments.map.numpy(), folder / FOLDER / file)
    listed = zip(segments.labels.tolist(), segments.crowd.tolist(), areas, strict=True)
    info = [
        {"id": number, "category_id": categories.ids[label], "iscrowd": int(crowd), "area": area}
        for number, (label, crowd, area) in enumerate(listed, 1)
        if area
    ]
    return {"image_id": coco_id(image_id), "file_name": file, "segments_info": info}


def save_ids(ids: np.ndarray, path: Path) -> None:
    """A picture of segment ids, i32 [H, W] below 2^24. Raises UserError."""
    picture = Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8))
    write_atomic(path, lambda temporary: picture.save(temporary, "PNG"))


def write_annotations(folder: Path, annotations: Sequence[dict[str, Any]], categories: Categories) -> Path:
    """Write folder/panoptic.json, after the pictures, for what `write_segments` gave; the order is that of the list."""
    listed = [
        {"id": number, "name": name, "isthing": int(thing)}
        for number, name, thing in zip(categories.ids, categories.names, categories.things, strict=True)
    ]
    write_text(folder / FILE, json.dumps({"annotations": list(annotations), "categories": listed}) + "\n")
    return folder / FILE


def make_folders(folder: Path) -> None:
    """The folder that `write_segments` writes to. Raises UserError."""
    with writing(folder):
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)


def coco_id(image_id: str) -> int | str:
    """The id of an image in its annotation: COCO's are the numbers of its file names."""
    return int(image_id) if image_id.isascii() and image_id.isdecimal() else image_id
