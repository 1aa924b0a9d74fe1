"""Scenes: images with their label maps. A new data set is one new module here with `Options` and `open_scenes`.

    Options                      frozen dataclass: the settings of that kind (data.options), checked strictly
    open_scenes(root, split, options) -> SceneSet

Two more functions are used by `kappaseg data check` where a module has them:

    split_names(root, options) -> tuple[str, ...]                          the splits there are
    open_unchecked(root, split, options) -> tuple[SceneSet, list[str]]     a flawed split, and its flaws

Scene sets convert their ignore value to IGNORE and nobody else does: 255 is a real class where K > 255. Those that tell
objects apart give each Scene its `instances`, and have `things`.
"""

from __future__ import annotations

import re
from types import ModuleType

import numpy as np

from kappaseg_core.config import DataConfig, build
from kappaseg_core.errors import UserError
from kappaseg_core.label_counts import folds_of
from kappaseg_core.parts import kinds_of, part
from kappaseg_core.scenes.subset import Subset
from kappaseg_core.structures import SceneSet


def open_scenes(data: DataConfig, split: str) -> SceneSet:
    """One split of the configured data set, or a part of one: `train@1of5` is the second fifth of `train` and
    `train@not1of5` the rest, drawn by image id. Raises UserError for an unknown kind, setting, split or missing file.
    """
    module = scene_module(data.kind)
    name, fold = parted(split)
    scenes: SceneSet = module.open_scenes(data.root, name, scene_options(data))
    return scenes if fold is None else fold_subset(scenes, split, *fold)


PART = re.compile(r"(?P<name>.+)@(?P<but>not)?(?P<fold>\d+)of(?P<folds>\d+)")


def parted(split: str) -> tuple[str, tuple[int, int, bool] | None]:
    """A split's own name, and the part that is asked for: (i, n, all but part i). Raises UserError where i ≥ n."""
    found = PART.fullmatch(split)
    if found is None:
        return split, None
    fold, folds = int(found["fold"]), int(found["folds"])
    if fold >= folds or folds < 2:
        raise UserError(f"split {split!r}: wanted NAME@IofN or NAME@notIofN with I from 0 to N - 1 and N from 2")
    return found["name"], (fold, folds, found["but"] is not None)


def fold_subset(scenes: SceneSet, split: str, fold: int, folds: int, others: bool) -> Subset:
    """Part `fold` of `folds` equal parts of a split, or all the others, in the split's order."""
    chosen = (folds_of(scenes.image_ids, folds) == fold) != others
    return Subset(scenes, np.flatnonzero(chosen).tolist(), split)


def open_leniently(data: DataConfig, split: str) -> tuple[SceneSet, list[str]]:
    """What can be read of a split, and one line for each flaw of the split itself, as far as its kind can tell."""
    module, options = scene_module(data.kind), scene_options(data)
    if hasattr(module, "open_unchecked"):
        return module.open_unchecked(data.root, split, options)
    return module.open_scenes(data.root, split, options), []


def split_names(data: DataConfig) -> tuple[str, ...]:
    """The splits there are: training and validation first, then the others."""
    configured = (data.train, data.val)
    module = scene_module(data.kind)
    if not hasattr(module, "split_names"):
        return configured
    names = module.split_names(data.root, scene_options(data))
    return tuple(sorted(names, key=lambda name: configured.index(name) if name in configured else len(configured)))


def things_of(scenes: SceneSet) -> tuple[bool, ...]:
    """Which of the K labels are things, of a set that tells their objects apart. Raises UserError for another set."""
    things: tuple[bool, ...] | None = getattr(scenes, "things", None)
    if things is None:
        raise UserError(
            f"split {scenes.split!r} has label maps and no instance maps, wanted both; see docs/data.md (data.options."
            "instances of a folder or a packed file, data.options.objects of synthetic scenes, kind coco_panoptic)"
        )
    return things


def scene_kinds() -> tuple[str, ...]:
    """The values that data.kind may have: the modules of this package that define `open_scenes`, none imported."""
    return kinds_of(__name__, defines="open_scenes")


def scene_module(kind: str) -> ModuleType:
    """The module that reads scenes of this kind. Raises UserError that lists the kinds there are."""
    return part(__name__, kind, defines="open_scenes", setting="data.kind")


def scene_options(data: DataConfig) -> object:
    """data.options as the Options of its kind. Raises UserError with the dotted path of a bad setting."""
    return build(scene_module(data.kind).Options, data.options, path="data.options")
