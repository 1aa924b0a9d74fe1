"""ADE20K-Full, 847 classes: those of ADE20K's 3,688 categories that MaskFormer's benchmark keeps, in its order.

The release of 2021, whose masks are colours: category = red // 10 * 256 + green, 0 = none (blue tells instances):

    ADE20K_2021_17_01/index_ade20k.pkl      folder and file name of each image, names of the categories
    ADE20K_2021_17_01/images/ADE/{training,validation}/…/ADE_train_00000001.jpg, ADE_train_00000001_seg.png

Or what MaskFormer's script makes of it, in its folders or in mmseg's; 16-bit masks, 0..846 and 65535 = no label (read
where the release itself is not there):

    images_detectron2/{training,validation}/*.jpg    annotations_detectron2/{training,validation}/*.tif
    {train,val}/image/*.jpg                          {train,val}/label/*.tif

ade20k_full.txt is the benchmark's table: a category, counted from 1 in the index, and its name for each class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.images import photo
from kappaseg_core.scenes.published import Found, Item, Published
from kappaseg_core.scenes.published.ade20k_index import PICKLE, Index, index_file, read_index, refuse_other_names
from kappaseg_core.scenes.published.layout import id_table, mask_bytes, pairs, stored_values, to_ids
from kappaseg_core.scenes.published.shrinking import bilinear, nearest, shrunk_shape

RELEASE = "ADE20K_2021_17_01"
TITLE = f"ADE20K-Full, 847 classes ({RELEASE})"
DOWNLOAD = f"unpack {RELEASE}.zip (MIT, after registration) and give its folder, or one prepared of it, as --source"
SPLITS = {"train": 25574, "val": 2000}
_ROWS = [line.split(" ", 1) for line in Path(__file__).with_suffix(".txt").read_text("utf-8").splitlines()]
CLASSES = tuple(name for _, name in _ROWS)
CLASSES_SHA256 = "ee311c5f3b780a16a58f40726927f6c41149860a5fca6c1116ea1dca129efd8b"

#: category in the release's masks → class id; the other categories have no label
CATEGORIES = {int(category): label for label, (category, _) in enumerate(_ROWS)}
COLOURS = id_table(CATEGORIES, ignored=set(range(3688 + 1)) - CATEGORIES.keys())
IDS = id_table({label: label for label in range(len(CLASSES))}, ignored=[65535])

#: prepared folders: split → photos, masks
PREPARED = (
    {"train": ("train/image", "train/label"), "val": ("val/image", "val/label")},
    {
        "train": ("images_detectron2/training", "annotations_detectron2/training"),
        "val": ("images_detectron2/validation", "annotations_detectron2/validation"),
    },
)


@dataclass(frozen=True)
class Options:
    """Variants of the set."""

    short_side: int | None = 512
    """Images whose shorter side has more pixels are made smaller, as in the benchmark, which scores them at this size;
    null keeps them. (MaskFormer's script writes such photos as JPEG of Pillow's quality 75, this one of 95.)"""

    def __post_init__(self) -> None:
        if self.short_side is not None and self.short_side < 1:
            raise ValueError(f"short_side = {self.short_side}, wanted at least 1 pixel, or null to keep all sizes")


def published(options: Options) -> Published:
    return Published(len(CLASSES), CLASSES_SHA256, SPLITS)


def find(source: Path, options: Options) -> Found:
    for root in (source, source / RELEASE):
        path = index_file(root)
        if path is not None and (root / "images").is_dir():  # the script writes its folders beside these
            index = read_index(path)
            refuse_other_names(index, {category: CLASSES[label] for category, label in CATEGORIES.items()})
            return Found(CLASSES, list(_released(root, index)))
        for folders in PREPARED:
            if any((root / masks).is_dir() for _, masks in folders.values()):
                return Found(CLASSES, list(_prepared(root, folders)))
    raise UserError(f"{source} holds no {PICKLE} with images, no train/label, no annotations_detectron2; {DOWNLOAD}")


def label_map(item: Item, options: Options) -> np.ndarray:
    if item.mask.suffix == ".tif":
        return to_ids(stored_values(item.mask), IDS, item.mask)
    return to_ids(_categories(item.mask), COLOURS, item.mask)


def smaller(item: Item, mask: np.ndarray, options: Options) -> tuple[np.ndarray, np.ndarray] | None:
    """Photo u8 [h, w, 3] and label map [h, w] in the benchmark's size; None where that is the size they have."""
    height, width = mask.shape
    shape = shrunk_shape(height, width, options.short_side or min(height, width))
    if shape == mask.shape:
        return None
    picture = photo(item.photo.read_bytes(), f"image {item.photo}")
    return bilinear(picture.transpose(1, 2, 0), shape), nearest(mask, shape)


def _prepared(root: Path, folders: Mapping[str, tuple[str, str]]) -> Iterator[Item]:
    for split, (photos, masks) in folders.items():
        yield from pairs(split, root / photos, root / masks, mask=".tif")


def _released(root: Path, index: Index) -> Iterator[Item]:
    for image in index.images:
        split = "val" if image.name.startswith("ADE_val_") else "train"
        path = root / image
        yield Item(split, image.stem, path, path.with_name(f"{image.stem}_seg.png"))


def _categories(path: Path) -> np.ndarray:
    """Categories i32 [H, W] of the release's colours."""
    red, green, _ = photo(mask_bytes(path), f"mask {path}").astype(np.int32)
    return red // 10 * 256 + green
