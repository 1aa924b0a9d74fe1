"""A published data set → the layout of folder.py, in parallel, resumable, counted.

    TO/images/<id>.jpg       links to the photos of the source, or copies
    TO/masks/<id>.png        our ids 0..K-1; no label is 255 in 8 bits (K up to 254), 65535 in 16 bits
    TO/instances/<id>.png    16 bits, where objects are told apart, and TO/things.txt
    TO/classes.txt, TO/splits/<split>.txt, TO/prepared.json

Photo and maps of an image get their names when they are whole, the mask last: an image with a mask is done, and the
same command goes on after an interruption. prepared.json is there from the start and says what TO holds.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from kappaseg_core.config import build, to_plain
from kappaseg_core.errors import UserError
from kappaseg_core.files import write_atomic, write_text, writing
from kappaseg_core.lock import locked
from kappaseg_core.progress import Meter
from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes.folder import CROWD_VALUE
from kappaseg_core.scenes.in_parallel import in_parallel
from kappaseg_core.scenes.packing import UINT8_CLASSES
from kappaseg_core.scenes.prepared import INSTANCES, LOCK, Prepared, Record, begin, end, refuse_another
from kappaseg_core.scenes.published import Found, Item, Published, published_set, refuse_other_classes
from kappaseg_core.scenes.upright import upright_with
from kappaseg_core.segments import CROWD

Photos = Literal["link", "copy"]
Maps = np.ndarray | tuple[np.ndarray, np.ndarray]
Smaller = Callable[[Item, np.ndarray, Any], tuple[np.ndarray, np.ndarray] | None]

#: of photos that a set makes smaller; their colour keeps its resolution
JPEG_QUALITY = 95
#: what file systems without symbolic links answer, like exFAT
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


@dataclass(frozen=True)
class Job:
    """What is prepared, from where, to where. options: settings of the set.  photos: link, copy."""

    name: str
    options: dict[str, Any]
    source: Path
    to: Path
    photos: Photos = "link"


def prepare(job: Job, *, workers: int, partial: bool) -> Prepared:
    """Write what is missing of TO. Class names, splits and the end of the record: only where no scene is flawed.

    partial: a source that lacks images is prepared as far as it goes. Raises UserError for a source that is not that
    set or not all of it, and for a TO that holds something else or that another process prepares.
    """
    module = published_set(job.name)
    options = build(module.Options, job.options, source="command line", path="options")
    published: Published = module.published(options)
    record = Record(job.name, to_plain(options), str(job.source), job.photos, published.classes_sha256)
    refuse_another(record, job.to)
    if not job.source.is_dir():
        raise UserError(f"--source {job.source} is no folder; {module.DOWNLOAD}")
    found: Found = module.find(job.source, options)
    refuse_other_classes(found, published, module.TITLE)
    items = [item for item in found.items if not partial or _is_whole(item)]
    images = _count(items, published, partial, f"{job.source} is not all of {module.TITLE}", module.DOWNLOAD)
    smaller: Smaller = getattr(module, "smaller", keep_size)
    work = Work(
        job.to, job.photos, module.label_map, smaller, options, published.num_classes, found.things is not None
    )  # fmt: skip
    with locked(job.to / LOCK):
        refuse_another(record, job.to)  # once more: to find all images can take minutes
        begin(record, job.to, instances=work.instances)
        made, flaws = _make_missing(work, items, workers)
        prepared = Prepared(
            title=module.TITLE, classes=published.num_classes, ignore=work.ignore, images=images,
            published=dict(published.splits), made=made, left_out=len(found.items) - len(items), flaws=tuple(flaws),
            things=sum(found.things or ()),
        )  # fmt: skip
        if not flaws:
            _finish(work, items, found, record, prepared)
    return prepared


@dataclass(frozen=True)
class Work:
    """What a worker process needs to know of all scenes.

    label_map, smaller, options: the functions and the Options of the set.   classes: K.   instances: whether label_map
    gives an instance map too.
    """

    to: Path
    photos: Photos
    label_map: Callable[[Item, Any], Maps]
    smaller: Smaller
    options: object
    classes: int
    instances: bool

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        return np.uint8 if self.classes <= UINT8_CLASSES else np.uint16

    @property
    def ignore(self) -> int:
        return int(np.iinfo(self.dtype).max)


def make_scene(work: Work, item: Item) -> str | None:
    """Write the photo and the mask of an item; gives what is wrong with it, else None. Raises where disks fail."""
    try:
        mask, instances = _upright_maps(item, work.label_map(item, work.options))
        smaller = work.smaller(item, mask, work.options)
    except UserError as error:
        return str(error)
    if mask.min() < IGNORE or mask.max() >= work.classes:
        raise ValueError(
            f"label map of {item.image_id} holds {mask.min()}..{mask.max()}, wanted -1..{work.classes - 1}"
        )
    if smaller is None:
        _write_photo(item.photo, photo_path(work.to, item), work.photos)
    else:
        assert instances is None  # no set with objects resizes its images
        small_photo, mask = smaller
        _write_jpeg(small_photo, photo_path(work.to, item))
    if instances is not None:
        numbers = np.where(instances == CROWD, CROWD_VALUE, instances).astype(np.uint16)
        _write_map(numbers, instances_path(work.to, item))
    _write_map(np.where(mask == IGNORE, work.ignore, mask).astype(work.dtype), mask_path(work.to, item))
    return None


def _upright_maps(item: Item, maps: Maps) -> tuple[np.ndarray, np.ndarray | None]:
    """Label map and instance map of an item, both as its photo is upright; None for a set without objects."""
    if not isinstance(maps, tuple):
        return upright_with(item.photo, maps), None
    mask, instances = (upright_with(item.photo, found) for found in maps)
    return mask, instances


def _write_map(values: np.ndarray, path: Path) -> None:
    picture = Image.fromarray(values)
    write_atomic(path, lambda temporary: picture.save(temporary, "PNG"))


def keep_size(item: Item, mask: np.ndarray, options: object) -> None:
    """`smaller` of the sets that do not resize their images."""


def photo_path(to: Path, item: Item) -> Path:
    return to / "images" / f"{item.image_id}{item.photo.suffix.lower()}"


def mask_path(to: Path, item: Item) -> Path:
    return to / "masks" / f"{item.image_id}.png"


def instances_path(to: Path, item: Item) -> Path:
    return to / INSTANCES / f"{item.image_id}.png"


def _is_whole(item: Item) -> bool:
    return item.photo.exists() and (not isinstance(item.mask, Path) or item.mask.exists())


def _count(items: Sequence[Item], published: Published, partial: bool, what: str, download: str) -> dict[str, int]:
    """Images per split. Raises UserError where they are not as many as were published, or none."""
    counts = Counter(item.split for item in items)
    images = {split: counts[split] for split in published.splits}
    told = ", ".join(f"{split} {images[split]:,} of {wanted:,} images" for split, wanted in published.splits.items())
    if not items or (images != dict(published.splits) and not partial):
        step = "" if partial else ", or add --partial to prepare what is there"
        raise UserError(f"{what}: {told}; {download}{step}")
    twice = [image_id for image_id, times in Counter(item.image_id for item in items).items() if times > 1]
    if twice:
        more = f" (and {len(twice) - 1} more)" if len(twice) > 1 else ""
        raise UserError(f"{what}: image {twice[0]} is listed more than once{more}; unpack its lists again")
    return images


def _make_missing(work: Work, items: Sequence[Item], workers: int) -> tuple[int, list[str]]:
    """How many scenes were made, and a line for each that cannot be."""
    missing = _missing(work, items)
    flaws = []
    with Meter("preparing", len(items), done=len(items) - len(missing), unit="image") as meter:
        for flaw in in_parallel(functools.partial(make_scene, work), missing, workers):
            if flaw is not None:
                flaws.append(flaw)
            meter.advance(note=f"{len(flaws)} flawed" if flaws else "")
    return len(missing) - len(flaws), flaws


def _missing(work: Work, items: Sequence[Item]) -> list[Item]:
    """Items without a photo or one of their maps in TO."""
    parts = [photo_path, mask_path, *([instances_path] if work.instances else [])]
    there = {folder.name: set(os.listdir(folder)) for folder in work.to.iterdir() if folder.is_dir()}
    files = ((item, [part(work.to, item) for part in parts]) for item in items)
    return [item for item, paths in files if any(path.name not in there[path.parent.name] for path in paths)]


def _write_photo(source: Path, path: Path, photos: Photos) -> None:
    if photos == "copy":
        write_atomic(path, lambda temporary: shutil.copyfile(source, temporary))
    elif not path.is_symlink():
        with writing(path):
            _link(source, path)


def _link(source: Path, path: Path) -> None:
    try:
        path.symlink_to(source.absolute())
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        step = "name a new folder with --to and add --photos copy"
        raise UserError(f"cannot link {path} to its photo: the file system has no links; {step}") from None


def _write_jpeg(pixels: np.ndarray, path: Path) -> None:
    """u8 [H, W, 3]."""
    photo = Image.fromarray(pixels)
    write_atomic(path, lambda file: photo.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0))


def _finish(work: Work, items: Sequence[Item], found: Found, record: Record, prepared: Prepared) -> None:
    to, lost = work.to, _missing(work, items)
    if lost:
        raise UserError(f"{len(lost)} images are gone from {to} again, like {lost[0].image_id}; is it being changed?")
    write_text(to / "classes.txt", "".join(f"{name}\n" for name in found.class_names))
    if found.things is not None:
        things = (name for name, thing in zip(found.class_names, found.things, strict=True) if thing)
        write_text(to / "things.txt", "".join(f"{name}\n" for name in things))
    for split, images in prepared.images.items():
        if images:
            ids = [item.image_id for item in items if item.split == split]
            write_text(to / "splits" / f"{split}.txt", "".join(f"{image_id}\n" for image_id in ids))
    end(record, to, prepared)
