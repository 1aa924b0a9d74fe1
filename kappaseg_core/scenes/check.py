"""What is wrong with a data set, and what is in it. Every scene is read once, and reading goes on after a bad one.

Legend: n usable scenes of a split, K labels.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kappaseg_core.config import DataConfig
from kappaseg_core.errors import UserError
from kappaseg_core.progress import Meter
from kappaseg_core.scenes import open_leniently, split_names
from kappaseg_core.scenes.check_objects import ObjectCheck, SceneObjects, added_up, objects_of
from kappaseg_core.scenes.flaws import SceneFlaw, UnknownValues
from kappaseg_core.structures import Scene, SceneSet

SPLIT = "flaw of a split"
LEAK = "image in training and validation"


@dataclass(frozen=True)
class SplitCheck:
    """One split, counted over its n usable scenes.

    images: images of the split that are there; images - n of them are flawed.
    labels_per_image: i64 [n].   images_with: i64 [K], scenes that show the label.   pixels, unlabelled: sums.
    objects: what there is of objects; None where the set does not tell them apart.
    """

    split: str
    images: int
    labels_per_image: np.ndarray
    images_with: np.ndarray
    pixels: int
    unlabelled: int
    objects: ObjectCheck | None

    @property
    def flawed(self) -> int:
        return self.images - len(self.labels_per_image)


@dataclass(frozen=True)
class DataCheck:
    """A checked data set.

    flaws: kind of flaw → one line each (what makes the data set unusable as it is).
    unknown_values: mask value that means nothing → masks that hold it.
    notes: lines about what is odd, yet may be meant.
    """

    class_names: tuple[str, ...]
    splits: tuple[SplitCheck, ...]
    flaws: Mapping[str, Sequence[str]]
    unknown_values: Mapping[int, int]
    notes: tuple[str, ...]


def check_scenes(data: DataConfig, splits: Sequence[str] | None = None) -> DataCheck:
    """Read all scenes of the given splits (default: of all there are) and collect what is wrong and what is in them.

    Raises UserError only where nothing can be opened because no split is known; everything else is a line in `flaws`.
    """
    opened, problems = _open_all(data, split_names(data) if splits is None else tuple(dict.fromkeys(splits)))
    facts = _read_all(opened)
    checks = tuple(_split_check(scenes, facts) for scenes in opened)
    leaks, notes = _shared_images(opened, data)
    flaws = {SPLIT: problems, **_flaws_by_kind(facts), LEAK: leaks}
    return DataCheck(
        class_names=opened[0].class_names if opened else (),
        splits=checks,
        flaws={kind: tuple(lines) for kind, lines in flaws.items() if lines},
        unknown_values=_unknown_values(facts),
        notes=(
            *notes,
            *_same_pictures(facts),
            *_empty(checks),
            *_unseen(checks, opened, data),
            *_outside_objects(checks),
        ),
    )


def _open_all(data: DataConfig, splits: Sequence[str]) -> tuple[list[SceneSet], list[str]]:
    """The splits that can be opened, and the flaws of all; one that they share (no class file) is said once."""
    opened, problems = [], []
    for split in splits:
        try:
            scenes, found = open_leniently(data, split)
            opened.append(scenes)
            problems += found
        except UserError as error:
            problems.append(str(error))
    return opened, list(dict.fromkeys(problems))


@dataclass(frozen=True)
class _Facts:
    """What is kept of a usable scene: its labels i64 [m], pixels without a label and in all, a hash of the picture, and
    what it has of objects."""

    labels: np.ndarray
    unlabelled: int
    pixels: int
    picture: bytes
    objects: SceneObjects | None


_Read = dict[str, "_Facts | list[UserError]"]  # image id → facts, or what is wrong


def _read_all(opened: Sequence[SceneSet]) -> _Read:
    """Every image once, also where several splits list it."""
    places = {image_id: (scenes, index) for scenes in opened for index, image_id in enumerate(scenes.image_ids)}
    facts: _Read = {}
    with Meter("reading", len(places), unit="image") as meter:
        for image_id, (scenes, index) in places.items():
            facts[image_id] = _read(scenes, index)
            meter.advance()
    return facts


def _read(scenes: SceneSet, index: int) -> _Facts | list[UserError]:
    """Facts of a scene, or everything that is wrong: image and mask are tried apart where the set can do that."""
    try:
        return _facts(scenes[index], scenes)
    except UserError as error:
        first = error
    found = []
    parts = ("image", "mask") if getattr(scenes, "things", None) is None else ("image", "mask", "instances")
    for part in parts:
        try:
            if hasattr(scenes, part):
                getattr(scenes, part)(index)
        except UserError as error:
            found.append(error)
    return found or [first]


def _flaws_by_kind(facts: _Read) -> dict[str, list[str]]:
    lines: dict[str, list[str]] = {}
    for found in facts.values():
        for flaw in found if isinstance(found, list) else ():
            kind = flaw.kind if isinstance(flaw, SceneFlaw) else SceneFlaw.kind
            lines.setdefault(kind, []).append(str(flaw))
    return lines


def _facts(scene: Scene, scenes: SceneSet) -> _Facts:
    labels = np.unique(scene.mask)
    picture = hashlib.blake2b(
        np.ascontiguousarray(scene.image).data, digest_size=16, key=str(scene.image.shape).encode()
    )
    objects = None if scene.instances is None else objects_of(scene, scene.instances, scenes)
    return _Facts(labels[labels >= 0], int((scene.mask < 0).sum()), scene.mask.size, picture.digest(), objects)


def _split_check(scenes: SceneSet, facts: _Read) -> SplitCheck:
    mine = [facts[image_id] for image_id in scenes.image_ids]
    usable = [found for found in mine if isinstance(found, _Facts)]
    labels = np.concatenate([found.labels for found in usable]) if usable else np.empty(0, np.int64)
    return SplitCheck(
        split=scenes.split,
        images=len(scenes),
        labels_per_image=np.array([len(found.labels) for found in usable], np.int64),
        images_with=np.bincount(labels, minlength=len(scenes.class_names)),
        pixels=sum(found.pixels for found in usable),
        unlabelled=sum(found.unlabelled for found in usable),
        objects=added_up([found.objects for found in usable if found.objects is not None]),
    )


def _unknown_values(facts: _Read) -> dict[int, int]:
    errors = (error for found in facts.values() if isinstance(found, list) for error in found)
    masks = Counter(value for error in errors if isinstance(error, UnknownValues) for value in error.counts)
    return dict(sorted(masks.items()))


def _shared_images(opened: Sequence[SceneSet], data: DataConfig) -> tuple[list[str], list[str]]:
    """Images that two splits share: a flaw between training and validation, else a note (official and own splits)."""
    leaks, harmless = [], []
    for one, other in itertools.combinations(opened, 2):
        there = set(other.image_ids)
        shared = [image_id for image_id in one.image_ids if image_id in there]
        if shared and {one.split, other.split} == {data.train, data.val}:
            found = f"splits {one.split} and {other.split} share {_counted(len(shared), 'image')}: {first_few(shared)}"
            leaks.append(f"{found}; take each one out of one of the splits")
        elif shared:
            harmless.append(f"{one.split} and {other.split} {len(shared)}")
    return leaks, [f"images that splits share: {', '.join(harmless)}"] if harmless else []


def _same_pictures(facts: _Read) -> list[str]:
    ids: dict[bytes, list[str]] = {}
    for image_id, found in facts.items():
        if isinstance(found, _Facts):
            ids.setdefault(found.picture, []).append(image_id)
    return [f"the same picture under {len(same)} ids: {first_few(same)}" for same in ids.values() if len(same) > 1]


def _empty(checks: Sequence[SplitCheck]) -> list[str]:
    empty = {check.split: int((check.labels_per_image == 0).sum()) for check in checks}
    return [f"split {split}: {_counted(n, 'scene')} without a labelled pixel" for split, n in empty.items() if n]


def _unseen(checks: Sequence[SplitCheck], opened: Sequence[SceneSet], data: DataConfig) -> list[str]:
    """Labels that validation measures and training never shows."""
    counts = {check.split: check.images_with for check in checks}
    if data.train not in counts or data.val not in counts:
        return []
    unseen = np.flatnonzero((counts[data.val] > 0) & (counts[data.train] == 0))
    names = [opened[0].class_names[label] for label in unseen]
    return [f"{_counted(len(names), 'class')} of {data.val} not in {data.train}: {first_few(names)}"] if names else []


def _outside_objects(checks: Sequence[SplitCheck]) -> list[str]:
    found = [(check.split, check.objects.outside_share) for check in checks if check.objects is not None]
    what = "of the pixels of things are in no object, and void in the panoptic truth"
    return [f"split {split}: {100 * share:.2f} % {what}" for split, share in found if share]


def first_few(names: Sequence[str], limit: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _counted(count: int, what: str) -> str:
    plural = what + ("es" if what.endswith("s") else "s")
    return f"{count} {what if count == 1 else plural}"
