"""Published data sets as they are downloaded. A new set is one new module here; `kappaseg data prepare` finds it.

    TITLE, DOWNLOAD              one line each for people: what it is; what to get and where to put it
    Options                      frozen dataclass: the variants of the set, checked strictly; empty where there is one
    published(options) -> Published              K, the hash of the class names, images per split
    find(source, options) -> Found               class names, and an Item per image that the folder `source` lists
    label_map(item, options) -> i32 [H, W]       class ids 0..K-1, or IGNORE where there is no label; two maps,
                                                 this one and the instance map of a Scene, where objects are told apart
    smaller(item, mask, options) -> photo u8 [h, w, 3], mask [h, w], or None        only where a set resizes its images

`find` runs once, so this is where large annotation files are read: an Item carries whatever its label map is made of.
`label_map` runs in worker processes, one image at a time. Both raise UserError. Reading folders, lists, tables of ids
is shared in layout.py. preparing.py does the rest: it pairs sizes, writes, counts, resumes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.parts import kinds_of, part


@dataclass(frozen=True)
class Item:
    """One image of a set. Picklable.

    split: train, val, test.   image_id: the same in every form of the set; no folder in it.
    photo: its file, which may be missing.   mask: what label_map needs: a file, annotations.
    """

    split: str
    image_id: str
    photo: Path
    mask: Any


@dataclass(frozen=True)
class Published:
    """The set as it was published, whether or not all of it is here.

    classes_sha256: of "\\n".join(class names).   splits: split → images.
    """

    num_classes: int
    classes_sha256: str
    splits: Mapping[str, int]


@dataclass(frozen=True)
class Found:
    """What a source holds. Items in the order in which the split files list them.

    things: bool [K], of a set whose objects are told apart.
    """

    class_names: tuple[str, ...]
    items: Sequence[Item]
    things: tuple[bool, ...] | None = None


def set_names() -> tuple[str, ...]:
    """The sets there are: the modules of this package that define `label_map`, none imported."""
    return kinds_of(__name__, defines="label_map")


def published_set(name: str) -> ModuleType:
    """The module of a set. Raises UserError that lists the sets there are."""
    return part(__name__, name, defines="label_map", setting="data set")


def names_sha256(class_names: Sequence[str]) -> str:
    """sha256 (hex) of the names, one a line."""
    return hashlib.sha256("\n".join(class_names).encode()).hexdigest()


def refuse_other_classes(found: Found, published: Published, title: str) -> None:
    """Raises UserError where a source's class names are not those that were published, in their order."""
    if len(found.class_names) != published.num_classes or names_sha256(found.class_names) != published.classes_sha256:
        few = ", ".join(found.class_names[:3])
        raise UserError(
            f"the source has {len(found.class_names)} class names ({few}, …), wanted the {published.num_classes} of "
            f"{title} in their order; unpack its list of classes again"
        )
