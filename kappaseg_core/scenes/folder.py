"""Scenes in a folder: photos, label maps, class names and splits as plain files.

    root/images/<id>.jpg     .jpg .jpeg .png .webp .bmp .tif .tiff; grey, palette and CMYK photos become RGB
    root/masks/<id>.png      8- or 16-bit, grey or palette; as large as the photo is upright (EXIF rotation applied)
    root/classes.txt         one class name per line; class id = line number - 1
    root/splits/<split>.txt  image ids (file names without their ending), one per line

and where objects are told apart (data.options.instances: instances):

    root/instances/<id>.png  8- or 16-bit, as large as the mask: 1, 2, … = object of that number, of the mask's label;
                             0 = no object; 65535 = objects of the mask's label that were not told apart
    root/things.txt          the classes that have objects, one name of classes.txt per line; the others are stuff

Maps of all segments, which number those of stuff too, are read with data.options.numbers: segments.

What a mask value means is stated, never guessed: data.options.ignore and data.options.id_map.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes.flaws import MisplacedObject, MissingInstances, MissingMask, SizesDiffer, UnknownValues
from kappaseg_core.scenes.images import PHOTO_SUFFIXES, content_fingerprint, label_map, photo, stored_shape
from kappaseg_core.scenes.mask_values import UNKNOWN, VALUES, describe_unknown, value_table
from kappaseg_core.segments import CROWD
from kappaseg_core.structures import Scene

#: instance map value of objects that were not told apart
CROWD_VALUE = VALUES - 1


@dataclass(frozen=True)
class Options:
    """What the files mean."""

    ignore: int | None = 255
    """mask value that means "no label"; null = there is none"""
    id_map: dict[int, int] = field(default_factory=dict)
    """mask value → class id, or -1 for "no label"; empty = the value is the class id. Other values are an error."""
    images: str = "images"
    """folder of the photos, below root"""
    masks: str = "masks"
    """folder of the label maps, below root"""
    instances: str | None = None
    """folder of the instance maps, below root, for panoptic segmentation; null = objects are not told apart"""
    numbers: Literal["objects", "segments"] = "objects"
    """what instance maps number. objects: objects alone, a number elsewhere is an error; segments: all segments, and
    the numbers of stuff and of pixels without a label do not count"""
    things: str = "things.txt"
    """file of the classes that have objects, below root or anywhere"""

    def __post_init__(self) -> None:
        if self.ignore is not None and not 0 <= self.ignore < VALUES:
            raise ValueError(f"ignore = {self.ignore}, wanted a mask value in 0..{VALUES - 1} or null")
        for value in self.id_map:
            if not 0 <= value < VALUES:
                raise ValueError(f"id_map holds mask value {value}, wanted values in 0..{VALUES - 1}")


def open_scenes(root: str, split: str, options: Options) -> FolderScenes:
    """The scenes of a split. Raises UserError for what is missing, except masks: `image` works without them."""
    scenes, problems = open_unchecked(root, split, options)
    if problems:
        more = f" (and {len(problems) - 1} more; `kappaseg data check` lists them)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    return scenes


def open_unchecked(root: str, split: str, options: Options) -> tuple[FolderScenes, list[str]]:
    """The scenes of a split whose images are there, and one line for each flaw of the split (data check wants all)."""
    folder = _require_root(root)
    class_names = read_class_names(folder / "classes.txt")
    listed, problems = _listed_once(read_split(folder, split), split)
    files = _photos(folder / options.images)
    image_ids = []
    for image_id in listed:
        names = files.get(image_id, [])
        if len(names) == 1:
            image_ids.append(image_id)
        else:
            problems.append(_photo_problem(image_id, names, split, folder / options.images, files))
    photos = tuple(files[image_id][0] for image_id in image_ids)
    return FolderScenes(folder, split, options, class_names, tuple(image_ids), photos), problems


def split_names(root: str, options: Options) -> tuple[str, ...]:
    """The splits that have a file, sorted. Raises UserError where there is none."""
    folder = _require_root(root) / "splits"
    names = tuple(sorted(path.stem for path in folder.glob("*.txt")))
    if not names:
        raise UserError(f"{folder} holds no <split>.txt file; write the image ids of each split there, one per line")
    return names


class FolderScenes:
    """A split of a folder; each read opens its two files and nothing else."""

    def __init__(
        self,
        root: Path,
        split: str,
        options: Options,
        class_names: tuple[str, ...],
        image_ids: tuple[str, ...],
        photos: tuple[str, ...],
    ) -> None:
        self.root, self.split, self.options = root, split, options
        self.class_names, self.image_ids = class_names, image_ids
        self._photos = photos
        self._table = value_table(options.ignore, options.id_map, class_names)
        self.things: tuple[bool, ...] | None = None
        if options.instances is not None:
            self.things = _things(root, options, class_names)
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Scene:
        data = self.image_bytes(index)
        image = photo(data, f"image {self.image_path(index)}")
        mask = self.mask(index)
        if image.shape[1:] != mask.shape:
            raise SizesDiffer(self._size_problem(index, data, image.shape[1:], mask.shape))
        if self.things is None:
            return Scene(image, mask, self.image_ids[index])
        return Scene(image, mask, self.image_ids[index], self._objects(index, mask))

    def image(self, index: int) -> np.ndarray:
        """The photo alone, u8 [3, H, W]; the mask may be missing."""
        return photo(self.image_bytes(index), f"image {self.image_path(index)}")

    def mask(self, index: int) -> np.ndarray:
        """The label map alone, i32 [H, W], ids 0..K-1 or IGNORE. Raises UserError (UnknownValues for odd values)."""
        path = self.mask_path(index)
        values = label_map(self._mask_bytes(index), f"mask {path}")
        if values.dtype == np.int32 and (values.min() < 0 or values.max() >= VALUES):
            raise UserError(f"mask {path} holds values up to {values.max()}, wanted 8 or 16 bits; write it again")
        mask = self._table.take(values)
        if mask.min() == UNKNOWN:
            raise self._unknown_values(path, values[mask == UNKNOWN])
        return mask

    def instances(self, index: int) -> np.ndarray:
        """The instance map alone, i32 [H, W], numbers from 1, 0 or CROWD. Raises UserError."""
        path = self.instances_path(index)
        values = label_map(_read(path, "instance map", self.split, missing=MissingInstances), f"instance map {path}")
        if values.dtype == np.int32 and (values.min() < 0 or values.max() >= VALUES):
            raise UserError(f"instance map {path} holds values up to {values.max()}, wanted 8 or 16 bits")
        return np.where(values == CROWD_VALUE, np.int32(CROWD), values.astype(np.int32))

    def mask_shape(self, index: int) -> tuple[int, int]:
        """Height and width of the label map, from its header."""
        return stored_shape(self._mask_bytes(index), f"mask {self.mask_path(index)}")

    def image_bytes(self, index: int) -> bytes:
        """The photo's file as it is."""
        return _read(self.image_path(index), "image", self.split)

    def image_path(self, index: int) -> Path:
        return self.root / self.options.images / self._photos[index]

    def mask_path(self, index: int) -> Path:
        return self.root / self.options.masks / f"{self.image_ids[index]}.png"

    def instances_path(self, index: int) -> Path:
        return self.root / str(self.options.instances) / f"{self.image_ids[index]}.png"

    def fingerprint(self) -> str:
        """sha256 over the sorted image ids and image files; read once per object (a disk's pace)."""
        if self._fingerprint is None:
            contents = (hashlib.sha256(self.image_bytes(index)).hexdigest() for index in range(len(self)))
            self._fingerprint = content_fingerprint(zip(self.image_ids, contents, strict=True))
        return self._fingerprint

    def _mask_bytes(self, index: int) -> bytes:
        return _read(self.mask_path(index), "mask", self.split, missing=MissingMask)

    def _size_problem(self, index: int, data: bytes, shape: tuple[int, ...], mask_shape: tuple[int, ...]) -> str:
        image, mask = f"image {self.image_path(index)}", f"mask {self.mask_path(index)}"
        rotated, fix = "", "make them the same size or take the id out of the split"
        if stored_shape(data, image) == mask_shape:
            rotated = " with its EXIF rotation applied"
            fix = "turn the mask upright too, or remove the EXIF orientation from the photo"
        sizes = "{}x{}".format(*shape), "{}x{}".format(*mask_shape)
        return f"{image} is {sizes[0]} (height x width){rotated}, {mask} is {sizes[1]}; {fix}"

    def _objects(self, index: int, mask: np.ndarray) -> np.ndarray:
        """The instance map of a mask. Raises UserError where it is of another size, or has an object where the mask has
        no thing."""
        path, instances = self.instances_path(index), self.instances(index)
        if instances.shape != mask.shape:
            sizes = "{}x{}".format(*instances.shape), "{}x{}".format(*mask.shape)
            raise SizesDiffer(
                f"instance map {path} is {sizes[0]} (height x width), its mask is {sizes[1]}; write one of them again"
            )
        nothing = ~np.array([*(self.things or ()), False])  # IGNORE = -1 picks the last one
        if self.options.numbers == "segments":
            return np.where(nothing[mask], np.int32(0), instances)
        wrong = mask[(instances != 0) & nothing[mask]]
        if wrong.size:
            label = int(wrong[0])
            where = "pixels without a label" if label == IGNORE else f"{self.class_names[label]!r}, which is stuff"
            raise MisplacedObject(
                f"instance map {path} has an object on {where} ({wrong.size} such pixels), wanted 0 there; write it "
                f"again, list the class in {self.root / self.options.things}, or where stuff is numbered too set "
                "data.options.numbers to segments"
            )
        return instances

    def _unknown_values(self, path: Path, values: np.ndarray) -> UnknownValues:
        found, pixels = np.unique(values, return_counts=True)
        counts = dict(zip(found.tolist(), pixels.tolist(), strict=True))
        meaning = describe_unknown(counts, self.options.ignore, self.options.id_map, len(self.class_names))
        return UnknownValues(f"mask {path} holds {meaning}", counts)


def read_class_names(path: Path) -> tuple[str, ...]:
    """The lines of classes.txt. Raises UserError where the file or a name is missing."""
    names = _lines(path, "class file", "write one class name per line there")
    for number, name in enumerate(names, 1):
        if not name:
            raise UserError(f"class file {path}: line {number} is empty, and ids are line numbers; write a name there")
    if not 0 < len(names) <= VALUES:
        raise UserError(f"class file {path} has {len(names)} names, wanted 1..{VALUES}; write one class name per line")
    return tuple(names)


def read_things(path: Path, class_names: tuple[str, ...]) -> tuple[bool, ...]:
    """Which classes things.txt lists. Raises UserError where it is missing, empty, or lists what is no class."""
    listed = [
        name for name in _lines(path, "list of things", "write the names of the classes that have objects") if name
    ]
    if not listed:
        raise UserError(f"list of things {path} is empty, wanted the names of the classes that have objects")
    unknown = [name for name in listed if name not in class_names]
    if unknown:
        raise UserError(f"list of things {path} has {unknown[0]!r}, which is no class; write it as classes.txt does")
    return tuple(name in listed for name in class_names)


def _things(root: Path, options: Options, class_names: tuple[str, ...]) -> tuple[bool, ...]:
    """Those of a folder with instance maps. Raises UserError where their folder or the list is missing."""
    folder = root / str(options.instances)
    if not folder.is_dir():
        raise UserError(
            f"data.options.instances = {options.instances!r}: {folder} is no folder; name that of the instance maps"
        )
    return read_things(root / options.things, class_names)


def read_split(root: Path, split: str) -> list[str]:
    """The image ids that splits/<split>.txt lists, as written. Raises UserError that names the splits there are."""
    path = root / "splits" / f"{split}.txt"
    there = sorted(other.stem for other in path.parent.glob("*.txt"))
    listed = _lines(path, f"split {split!r}", f"there are: {', '.join(there)}" if there else "list image ids there")
    listed = [image_id for image_id in listed if image_id]
    if not listed:
        raise UserError(f"split {split!r} ({path}) lists no image; write one image id per line there")
    return listed


def _require_root(root: str) -> Path:
    if not root:
        raise UserError("data.root is empty, wanted the folder of the data set; set data.root")
    folder = Path(root)
    if not folder.is_dir():
        state = "is no folder" if folder.exists() else "does not exist"
        raise UserError(f"data.root {root} {state}; set it to the folder with images/, masks/ and classes.txt")
    return folder


def _lines(path: Path, what: str, hint: str) -> list[str]:
    """The lines of a text file without surrounding blanks; empty ones at the end are dropped."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise UserError(f"{what}: {path} does not exist; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what}: {path} cannot be read as UTF-8 text ({error}); {hint}") from None
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _listed_once(listed: list[str], split: str) -> tuple[list[str], list[str]]:
    """The ids without repetitions, and a line for each repeated one."""
    times: dict[str, int] = {}
    for image_id in listed:
        times[image_id] = times.get(image_id, 0) + 1
    problems = [
        f"split {split!r} lists image {image_id} {count} times; keep one of the lines"
        for image_id, count in times.items()
        if count > 1
    ]
    return list(times), problems


def _photos(folder: Path) -> dict[str, list[str]]:
    """Image id → names of its files (one, where all is well)."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"image folder {folder}: {reason}; set data.root or data.options.images") from None
    found: dict[str, list[str]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in PHOTO_SUFFIXES:
            found.setdefault(stem, []).append(name)
    return found


def _photo_problem(image_id: str, names: list[str], split: str, folder: Path, files: dict[str, list[str]]) -> str:
    if names:
        return f"image {image_id} of split {split!r} has {len(names)} files in {folder}: {', '.join(names)}; keep one"
    stem = os.path.splitext(image_id)[0]
    fix = f"write {stem}, without the ending" if stem in files else "add it or take its id out of the split"
    return f"image {image_id} of split {split!r} is not in {folder}; {fix}"


def _read(path: Path, what: str, split: str, *, missing: type[UserError] = UserError) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise missing(f"{what} {path} does not exist; add it or take its id out of split {split!r}") from None
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {(error.strerror or str(error)).lower()}") from None
