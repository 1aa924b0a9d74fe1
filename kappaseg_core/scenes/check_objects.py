"""What is in the instance maps of a data set, and what is wrong with them. Part of check.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kappaseg_core.scenes import things_of
from kappaseg_core.scenes.flaws import MisplacedObject
from kappaseg_core.segments import CROWD
from kappaseg_core.structures import Scene, SceneSet


@dataclass(frozen=True)
class SceneObjects:
    """Of one scene: objects, whether some were not told apart, pixels of things, and those of them in no object."""

    objects: int
    crowd: bool
    of_things: int
    outside: int


@dataclass(frozen=True)
class ObjectCheck:
    """Of a split. per_image: i64 [n].   crowds: scenes with objects that were not told apart.

    outside_share: share of the pixels of things that are in no object, which are void in the panoptic truth.
    """

    per_image: np.ndarray
    crowds: int
    outside_share: float


def added_up(scenes: Sequence[SceneObjects]) -> ObjectCheck | None:
    """A split's, of those of its scenes; None where there are none."""
    if not scenes:
        return None
    of_things, outside = (sum(getattr(scene, name) for scene in scenes) for name in ("of_things", "outside"))
    per_image = np.array([scene.objects for scene in scenes], np.int64)
    return ObjectCheck(per_image, sum(scene.crowd for scene in scenes), outside / max(1, of_things))


def objects_of(scene: Scene, instances: np.ndarray, scenes: SceneSet) -> SceneObjects:
    """What a scene has of objects. Raises MisplacedObject where one lies on two labels, since numbers tell them."""
    labels, told = len(scenes.class_names), instances > 0
    numbers, label = np.divmod(np.unique(instances[told].astype(np.int64) * labels + scene.mask[told]), labels)
    (twice,) = np.nonzero(numbers[1:] == numbers[:-1])
    if len(twice):
        first = int(twice[0])
        names = " and ".join(scenes.class_names[found] for found in label[first : first + 2])
        more = f" (and {len(twice) - 1} more)" if len(twice) > 1 else ""
        raise MisplacedObject(
            f"image {scene.image_id}: object {numbers[first]} lies on {names}{more}, wanted a number for each "
            "object; write its mask or its instance map again"
        )
    of_things = np.array([*things_of(scenes), False])[scene.mask]  # IGNORE = -1 picks the last one
    return SceneObjects(
        len(numbers), bool((instances == CROWD).any()), int(of_things.sum()), int((of_things & (instances == 0)).sum())
    )
