"""ADE20K-Full: the release with its index, and the 16-bit masks that MaskFormer's script makes of it."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kappaseg_core.scenes.published.ade20k_full import CATEGORIES, CLASSES
from tests.kappaseg_core.scenes.published.miniature import Miniature, draw_mask, draw_photo

NAMES = {0: "wall", 300: "altar, communion table, lord's table", 846: "adding machine, totalizer, totaliser"}
EXPECTED = {
    "train": {"ADE_train_00000001": [[-1, 0, 300], [846, 256, 255]], "ADE_frame_000000s7": [[7, 7], [-1, -1], [3, 4]]},
    "val": {"ADE_val_00000001": [[846, -1, 0]]},
}
#: categories of EXPECTED in the release, where 0 is none and 1 and 3688 are not among the 847
STORED = {
    "ADE_train_00000001": [[0, 2978, 3108], [3148, 2315, 1857]],
    "ADE_frame_000000s7": [[165, 165], [1, 3688], [2855, 2131]],
    "ADE_val_00000001": [[3148, 0, 2978]],
}
FOLDERS = {"train": "training", "val": "validation"}
SCENES = {"train": "urban/street", "val": "home_or_hotel/bathroom"}


def make_release(path: Path) -> Miniature:
    photos = {}
    for split, maps in EXPECTED.items():
        folder = path / "images" / "ADE" / FOLDERS[split] / SCENES[split]
        for image_id, rows in maps.items():
            photos[image_id] = draw_photo(folder / f"{image_id}.jpg", (len(rows), len(rows[0])), len(photos))
            draw_colours(folder / f"{image_id}_seg.png", STORED[image_id])
    (path / "index_ade20k.pkl").write_bytes(pickle.dumps(index()))

    def spoil() -> Sequence[str]:
        mask = path / "images" / "ADE" / "training" / SCENES["train"] / "ADE_train_00000001_seg.png"
        draw_colours(mask, [[0, 3689, 3108], [3689, 2315, 1857]])
        return "ADE_train_00000001_seg.png", "3689 (2 pixels)", "0..3688"

    return Miniature("ade20k_full", path, EXPECTED, photos, NAMES, spoil)


def make_prepared(path: Path, photos: str, masks: str) -> Miniature:
    """photos, masks: folders with {split} for train, val or {long} for training, validation."""
    drawn = {}
    for split, maps in EXPECTED.items():
        for image_id, rows in sorted(maps.items()):
            stored = [[65535 if label < 0 else label for label in row] for row in rows]
            draw_mask(path / masks.format(split=split, long=FOLDERS[split]) / f"{image_id}.tif", stored, bits=16)
            photo = path / photos.format(split=split, long=FOLDERS[split]) / f"{image_id}.jpg"
            drawn[image_id] = draw_photo(photo, (len(rows), len(rows[0])), len(drawn))

    def spoil() -> Sequence[str]:
        draw_mask(path / masks.format(split="val", long="validation") / "ADE_val_00000001.tif", [[847, 0, 0]], bits=16)
        return "ADE_val_00000001.tif", "847 (1 pixel)", "0..65535"

    splits = {split: dict(sorted(maps.items())) for split, maps in EXPECTED.items()}
    return Miniature("ade20k_full", path, splits, drawn, NAMES, spoil)


def index() -> dict[str, object]:
    """The index of the release, with what else it holds: names, counts and presence of each category."""
    names = ["-"] * 3688
    for category, label in CATEGORIES.items():
        names[category - 1] = CLASSES[label].replace("c p u ", "C.P.U.").replace("equus", "Equus")
    files = [(split, f"{image_id}.jpg") for split, maps in EXPECTED.items() for image_id in maps]
    return {
        "filename": [file for _, file in files],
        "folder": [f"ADE20K_2021_17_01/images/ADE/{FOLDERS[split]}/{SCENES[split]}" for split, _ in files],
        "objectnames": names,
        "objectPresence": np.zeros((3688, len(files)), np.float32),
        "objectcounts": np.arange(3688.0),
        "scene": np.array(["street", "street", "bathroom"], object),
        "description": "",
    }


def draw_colours(path: Path, categories: Sequence[Sequence[int]]) -> Path:
    """A mask of the release: red and green say the category, blue the instance."""
    values = np.array(categories)
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.stack([values // 256 * 10, values % 256, np.full(values.shape, 77)], 2)
    Image.fromarray(colours.astype(np.uint8)).save(path)
    return path


VARIANTS = {
    "": make_release,
    "prepared": functools.partial(
        make_prepared, photos="images_detectron2/{long}", masks="annotations_detectron2/{long}"
    ),
    "prepared mmseg": functools.partial(make_prepared, photos="{split}/image", masks="{split}/label"),
}
