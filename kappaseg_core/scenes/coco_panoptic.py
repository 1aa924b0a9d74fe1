"""COCO 2017 with its panoptic annotations, as downloaded, and whatever else has its files (panoptic_files.py).

    root/annotations/panoptic_{train,val}2017.json
    root/annotations/panoptic_{train,val}2017/000000000139.png …      colours are the ids of segments
    root/{train,val}2017/000000000139.jpg …

Class ids are places in the list of categories of the JSON file: 80 things and 53 kinds of stuff. VOID has no label.
`kappaseg data prepare coco_panoptic` makes a folder of the same scenes, which starts at once: here every start reads
the JSON file of the split.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.images import content_fingerprint, photo
from kappaseg_core.scenes.panoptic_files import Annotations, read_annotations
from kappaseg_core.scenes.upright import upright_with
from kappaseg_core.structures import Scene

SPLIT = "{split}"


@dataclass(frozen=True)
class Options:
    """Where the files of a split are, below root; {split} stands for its name."""

    annotations: str = "annotations/panoptic_{split}2017.json"
    """JSON file"""
    segments: str | None = None
    """folder of the pictures of segments; null = as the JSON file is named, without .json"""
    images: str = "{split}2017"
    """folder of the photographs"""

    def __post_init__(self) -> None:
        if SPLIT not in self.annotations:
            raise ValueError(f"annotations = {self.annotations!r}, wanted {SPLIT} in it, where the split's name stands")


def open_scenes(root: str, split: str, options: Options) -> CocoPanopticScenes:
    """A split, its JSON file read. Raises UserError for one that is missing or is no such file."""
    path = Path(root) / options.annotations.replace(SPLIT, split)
    if not path.is_file():
        there = ", ".join(split_names(root, options)) or "none"
        raise UserError(
            f"split {split!r}: {path} does not exist; splits there are: {there}; set data.root or data.options"
        )
    folder = None if options.segments is None else Path(root) / options.segments.replace(SPLIT, split)
    photos = Path(root) / options.images.replace(SPLIT, split)
    return CocoPanopticScenes(split, read_annotations(path, folder), photos)


def split_names(root: str, options: Options) -> tuple[str, ...]:
    """The splits that have a JSON file, sorted."""
    before, after = options.annotations.split(SPLIT, 1)
    found = (path.relative_to(root).as_posix() for path in Path(root).glob(f"{before}*{after}"))
    return tuple(sorted(name[len(before) : len(name) - len(after)] for name in found))


class CocoPanopticScenes:
    """A split; each read opens a photograph and a picture of segments."""

    def __init__(self, split: str, annotations: Annotations, photos: Path) -> None:
        self.split, self.annotations, self.photos = split, annotations, photos
        self.class_names, self.things = annotations.categories.names, annotations.categories.things
        self._names = annotations.scene_photos()
        self.image_ids = tuple(Path(name).stem for name in self._names)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Scene:
        index = range(len(self))[index]
        mask, instances = (upright_with(self.image_path(index), found) for found in self.annotations[index].maps())
        return Scene(self.image(index), mask, self.image_ids[index], instances)

    def image(self, index: int) -> np.ndarray:
        """The photograph alone, u8 [3, H, W]."""
        return photo(self._image_bytes(index), f"image {self.image_path(index)}")

    def image_path(self, index: int) -> Path:
        return self.photos / self._names[index]

    def fingerprint(self) -> str:
        """sha256 over the sorted image ids and image files."""
        contents = (hashlib.sha256(self._image_bytes(index)).hexdigest() for index in range(len(self)))
        return content_fingerprint(zip(self.image_ids, contents, strict=True))

    def _image_bytes(self, index: int) -> bytes:
        path = self.image_path(index)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"image {path} does not exist; set data.options.images or unpack its archive") from None
        except OSError as error:
            raise UserError(f"image {path} cannot be read: {(error.strerror or str(error)).lower()}") from None
