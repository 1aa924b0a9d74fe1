"""Panoptic segmentation in COCO's files: a JSON file and a folder of PNG pictures, of truth and of predictions alike.

    X.json    {"images": [{id, file_name, height, width}], "categories": [{id, name, isthing}], "annotations": [
                {image_id, file_name, segments_info: [{id, category_id, iscrowd, area}]}]}
    X/        the pictures: the id of a pixel's segment is R + 256 G + 65536 B; 0 = VOID

Predictions may lack images, and categories where those of the truth count.

Annotations of a training split have millions of segments. They are read in one pass and kept as arrays, 13 bytes per
segment, so that a set can be handed to worker processes.

Legend: N images, S segments of one, K labels (in the order of the categories), H W pixels.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes.images import colours
from kappaseg_core.scenes.published.records import records
from kappaseg_core.segments import CROWD, VOID, Segments


@dataclass(frozen=True)
class Categories:
    """The K labels. ids: those of the files; label = place in the list.   things: whether objects are told apart."""

    names: tuple[str, ...]
    things: tuple[bool, ...]
    ids: tuple[int, ...]

    @classmethod
    def of(cls, names: Sequence[str], things: Sequence[bool]) -> Categories:
        """Those of a set whose files have no ids of their own: the label is the id."""
        return cls(tuple(names), tuple(things), tuple(range(len(names))))


@dataclass(frozen=True)
class Picture:
    """What is said of an image. Picklable, and small.

    path: of the picture.   ids: i64 [S], labels: i32 [S], crowds, things: bool [S], of the segments in their order.
    """

    path: Path
    ids: np.ndarray
    labels: np.ndarray
    crowds: np.ndarray
    things: np.ndarray

    def segments(self) -> Segments:
        """The segments of the image. Raises UserError."""
        labels = torch.from_numpy(self.labels.astype(np.int64))
        return Segments(torch.from_numpy(self._map()), labels, torch.from_numpy(self.crowds))

    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """Label map and instance map of the image, both i32 [H, W] as in a Scene. Raises UserError.

        Objects are numbered as listed, a crowd is CROWD, stuff has no number.
        """
        numbers = np.where(self.crowds, CROWD, np.arange(1, len(self.ids) + 1)) * self.things
        tables = np.stack([[IGNORE, *self.labels], [0, *numbers]]).astype(np.int32)
        mask, instances = tables[:, self._map()]
        return mask, instances

    def _map(self) -> np.ndarray:
        """Which segment each pixel is in, from 1; VOID. i32 [H, W]."""
        found, order = segment_ids(self.path), np.argsort(self.ids)
        ordered = np.concatenate([[VOID], self.ids[order]])  # ids are above VOID
        place = np.searchsorted(ordered, found)
        unlisted = found[ordered.take(place, mode="clip") != found]
        if unlisted.size:
            raise UserError(f"picture {self.path} has segment {unlisted[0]}, which its annotation does not list")
        absent = np.bincount(place.ravel(), minlength=len(ordered))[1:] == 0
        if absent.any():
            first = self.ids[order][absent][0]
            raise UserError(f"picture {self.path} has no pixel of segment {first}, which its annotation lists")
        return np.concatenate([[VOID], order + 1]).astype(np.int32)[place]


@dataclass(frozen=True)
class Annotations:
    """What a JSON file says, and where the pictures are.

    image_ids: as in the file, as text.   files: names of the pictures.   photos: names of the photographs, "" where
    the file does not say.   first: i64 [N + 1]; the segments of image n are those from first[n] up to first[n + 1] of
    segment_ids i64, labels i32 and crowds bool.
    """

    path: Path
    folder: Path
    categories: Categories
    image_ids: tuple[str, ...]
    files: tuple[str, ...]
    photos: tuple[str, ...]
    first: np.ndarray
    segment_ids: np.ndarray
    labels: np.ndarray
    crowds: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Picture:
        own = slice(*self.first[index : index + 2])
        labels = self.labels[own]
        things = np.array(self.categories.things)[labels]
        return Picture(self.folder / self.files[index], self.segment_ids[own], labels, self.crowds[own], things)

    def scene_photos(self) -> tuple[str, ...]:
        """Names of the photographs; where the file does not say, those of the pictures with the ending .jpg."""
        names = zip(self.photos, self.files, strict=True)
        return tuple(name or f"{Path(file).stem}.jpg" for name, file in names)


def read_annotations(path: Path, folder: Path | None = None, categories: Categories | None = None) -> Annotations:
    """A JSON file as it stands in COCO. Raises UserError.

    folder: of the pictures; None = as the file is named, without .json.
    categories: those that the segments have where the file has none of its own.
    """
    folder = path.with_suffix("") if folder is None else folder
    if not folder.is_dir():
        raise UserError(f"the pictures of {path} are not there: {folder} is no folder; unpack them there")
    seen = _Pass(path)
    own = seen.categories() or categories
    if own is None:
        raise UserError(
            f"{path} has no categories, wanted a list of id, name and isthing; is it the file of the truth?"
        )
    return seen.annotations(folder, own)


def segment_ids(path: Path) -> np.ndarray:
    """R + 256 G + 65536 B of each pixel of a picture, i32 [H, W]. Raises UserError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"picture {path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    picture = colours(data, f"picture {path}")
    ids: np.ndarray = picture @ np.array([1, 256, 65536], np.int32)
    return ids


class _Pass:
    """One pass over a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listed = list[dict[str, Any]]()
        self.photos = dict[str, str]()
        self.image_ids, self.files = list[str](), list[str]()
        self.first, self.ids, self.raw_labels, self.crowds = array("q", [0]), array("q"), array("q"), array("b")
        take = {"images": self._image, "annotations": self._annotation, "categories": self.listed.append}
        for key, value, *_ in records(path):
            try:
                take.get(key, _nothing)(value)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(
                    f"{path}: an entry of {key} is not as in COCO's panoptic files ({error!r}); is it another file?"
                ) from None

    def _image(self, value: dict[str, Any]) -> None:
        self.photos[str(value["id"])] = _text(value.get("file_name", ""))

    def _annotation(self, value: dict[str, Any]) -> None:
        segments = value["segments_info"]
        self.image_ids.append(str(value["image_id"]))
        self.files.append(_text(value["file_name"]))
        for segment in segments:
            if segment["id"] <= VOID:
                raise ValueError(f"segment {segment['id']} of image {value['image_id']}")
            self.ids.append(segment["id"])
            self.raw_labels.append(segment["category_id"])
            self.crowds.append(segment.get("iscrowd", 0))
        self.first.append(len(self.ids))

    def categories(self) -> Categories | None:
        """Those of the file; None where it has none."""
        if not self.listed:
            return None
        try:
            ids = tuple(int(category["id"]) for category in self.listed)
            names = tuple(_text(category["name"]) for category in self.listed)
            return Categories(names, tuple(bool(category["isthing"]) for category in self.listed), ids)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path}: categories lack {error}, wanted id, name and isthing of each") from None

    def annotations(self, folder: Path, categories: Categories) -> Annotations:
        if not self.image_ids:
            raise UserError(f"{self.path} has no annotations, wanted a JSON file of COCO's panoptic segmentation")
        if len(set(self.image_ids)) < len(self.image_ids):
            twice = next(image_id for image_id in self.image_ids if self.image_ids.count(image_id) > 1)
            raise UserError(f"{self.path} annotates image {twice} more than once; keep one of its annotations")
        raw, ids = np.array(self.raw_labels, np.int64), np.array(categories.ids, np.int64)
        order = np.argsort(ids)
        place = np.searchsorted(ids[order], raw).clip(max=len(ids) - 1)
        unknown = raw[ids[order][place] != raw]
        if unknown.size:
            raise UserError(f"{self.path} has a segment of category {unknown[0]}, which is not among its categories")
        return Annotations(
            self.path, folder, categories, tuple(self.image_ids), tuple(self.files),
            tuple(self.photos.get(image_id, "") for image_id in self.image_ids),
            np.array(self.first, np.int64), np.array(self.ids, np.int64), order[place].astype(np.int32),
            np.array(self.crowds, np.bool_),
        )  # fmt: skip


def _nothing(value: object) -> None:
    """Licences, and whatever else a file has."""


def _text(text: str) -> str:
    """A string of `records`, which decodes byte by byte; those that were escaped are as they should be already."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text
