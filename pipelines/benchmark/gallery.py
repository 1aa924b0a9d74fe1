"""Example images of a benchmark: the photograph, the truth, the label map of each main scheme, and how the labels were
ranked (Fig. 1, He et al. 2022).

The photographs are read from the data set when the page is made; the maps and rankings were kept by the measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from kappaseg_core.config import DataConfig, build
from kappaseg_core.errors import UserError
from kappaseg_core.scenes import open_scenes
from kappaseg_core.structures import SceneSet
from pipelines.benchmark.records import Measured, Records
from pipelines.report import Example, example_view

#: schemes whose maps are shown, and of those, whose rankings
SHOWN = ("baseline", "independent", "joint", "oracle")
RANKED = ("baseline", "independent", "joint")


@dataclass(frozen=True)
class RankedLabels:
    """How one scheme ranked the labels of an image. rows: rank from 1, name, score, whether the truth has it.

    missed: labels of the truth that are not among those shown.
    """

    scheme: str
    rows: tuple[tuple[int, str, float, bool], ...]
    missed: int


def examples(records: Records, roles: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the page shows of each example image: title, pictures and legend (without the data set: none), rankings."""
    found = {role: records.of(roles[role])[0] for role in SHOWN if role in roles}
    if not found:
        return []
    first = next(iter(found.values()))
    names, scenes = first.values["class_names"], photographs(records, first)
    views = []
    for place, shown in enumerate(first.values["gallery"]):
        view: dict[str, Any] = {"title": shown["image_id"], "pictures": [], "legend": [], "legend_columns": []}
        if scenes is not None:
            view |= example_view(example(records, found, scenes, shown["image_id"], place), names)
        views.append({**view, "ranked": ranked(records, found, place)})
    return views


def photographs(records: Records, first: Measured) -> SceneSet | None:
    """The validation split; None (and named as missing) where it is not the one that was measured."""
    try:
        data = build(DataConfig, records.plan.get("config", {}).get("data", {}), source="plan.json")
        scenes = open_scenes(data, data.val)
    except UserError as error:
        records.lacks(f"pictures: the data set cannot be read here ({error})")
        return None
    if scenes.image_ids != first.counts.image_ids:
        records.lacks("pictures: the data set there now is not the one that was measured")
        return None
    return scenes


def example(records: Records, found: Mapping[str, Measured], scenes: SceneSet, image_id: str, place: int) -> Example:
    """One image with its truth and the maps of the schemes."""
    scene = scenes[scenes.image_ids.index(image_id)]
    maps = {label_of(records, one): label_map(one, place) for one in found.values()}
    return Example(image_id, scene.image, scene.mask, maps, ())


def label_map(found: Measured, place: int) -> np.ndarray:
    """The kept label map of an example image, i32 [H, W]."""
    with Image.open(found.folder / found.values["gallery"][place]["file"]) as picture:
        return np.asarray(picture).astype(np.int32)


def ranked(records: Records, found: Mapping[str, Measured], place: int) -> list[RankedLabels]:
    """The best labels of an image by each scheme that ranks."""
    made = []
    for role in RANKED:
        if role in found:
            row, names = found[role].values["ranked"][place], found[role].values["class_names"]
            columns = zip(row["labels"], row["scores"], row["present"], strict=True)
            rows = tuple((rank, names[label], score, there) for rank, (label, score, there) in enumerate(columns, 1))
            made.append(RankedLabels(label_of(records, found[role]), rows, row["missed"]))
    return made


def label_of(records: Records, found: Measured) -> str:
    return str(records.schemes[found.scheme]["label"])
