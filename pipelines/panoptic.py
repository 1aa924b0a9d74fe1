"""`kappaseg panoptic`: the true segments of a data set as files, the quality of predicted ones, pictures of them."""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from kappaseg_core.config import DataConfig
from kappaseg_core.errors import UserError
from kappaseg_core.files import no_empty_folders, write_atomic, write_text, writing
from kappaseg_core.metrics import known
from kappaseg_core.panoptic_quality import PanopticSums
from kappaseg_core.progress import Meter
from kappaseg_core.scenes import open_scenes, things_of
from kappaseg_core.scenes.images import PHOTO_SUFFIXES, photo
from kappaseg_core.scenes.panoptic_files import Annotations, Categories, read_annotations
from kappaseg_core.scenes.panoptic_writing import FILE
from kappaseg_core.segments import Segments, scene_segments
from kappaseg_core.structures import SceneSet
from pipelines.draw_segments import segment_overlay
from pipelines.segment_files import SegmentFiles, refuse_segments_there
from pipelines.tables import show_table

#: groups of labels, as the summary of the sums names them
GROUPS = {"all": "", "things": "_things", "stuff": "_stuff"}
QUALITY_COLUMNS = ("PQ", "SQ", "RQ", "classes")


def write_truth(data: DataConfig, split: str, to: Path) -> None:
    """The segments of a split as TO/panoptic.json and TO/panoptic/ID.png."""
    scenes = open_scenes(data, split)
    files = SegmentFiles(to, categories_of(scenes))
    refuse_segments_there(to)
    with no_empty_folders(to), Meter("writing", len(scenes), unit="image") as meter:
        for index in range(len(scenes)):
            scene = scenes[index]
            files.add(scene.image_id, scene_segments(scene, files.categories.things))
            meter.advance()
        written = files.finish()
    print(written)


def categories_of(scenes: SceneSet) -> Categories:
    """The classes of a data set with the ids of its own files, or else their places. Raises UserError."""
    things = things_of(scenes)
    annotations: Annotations | None = getattr(scenes, "annotations", None)
    return Categories.of(scenes.class_names, things) if annotations is None else annotations.categories


def show_quality(truth: Path, prediction: Path, *, to: Path | None, classes: bool) -> None:
    """Compare two panoptic files and print PQ, SQ and RQ; `to`: a JSON file with all of it."""
    files = annotation_file(truth), annotation_file(prediction)
    if to is not None and to.resolve() in (file.resolve() for file in files):
        raise UserError(f"--to {to} is one of the files that are compared; name another")
    true = read_annotations(files[0])
    found = read_annotations(files[1], None, true.categories)
    sums = quality(true, found)
    summary = sums.summary()
    show_table(f"{len(true)} images, in %", ["", *QUALITY_COLUMNS], quality_rows(summary))
    by_class = class_records(sums, true.categories)
    if classes:
        columns = ["class", "", "PQ", "SQ", "RQ", "TP", "FP", "FN"]
        show_table("classes", columns, [class_row(record) for record in by_class if record["PQ"] is not None])
    if to is not None:
        record = {"truth": str(truth), "prediction": str(prediction), "images": len(true)}
        numbers = {name: known(value) for name, value in summary.items()}
        write_text(to, json.dumps(record | numbers | {"classes": by_class}, indent=1, ensure_ascii=False) + "\n")


def quality_rows(summary: Mapping[str, float | None]) -> list[list[str]]:
    """A row for each group of labels: its name and the QUALITY_COLUMNS.   summary: as PanopticSums gives it."""
    return [
        [group, *(percent(summary[name + ending]) for name in ("PQ", "SQ", "RQ")), str(summary[f"labels{ending}"])]
        for group, ending in GROUPS.items()
    ]


def annotation_file(path: Path) -> Path:
    """A JSON file, or panoptic.json of a folder. Raises UserError."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        what = f"holds no {FILE}" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}; give a JSON file of panoptic annotations, or a folder with {FILE}")
    return file


def quality(truth: Annotations, prediction: Annotations) -> PanopticSums:
    """The sums over all images of the truth, each of which must be predicted. Raises UserError."""
    if truth.categories != prediction.categories:
        raise UserError(f"{prediction.path} has other categories than {truth.path}; {difference(truth, prediction)}")
    place = {image_id: index for index, image_id in enumerate(prediction.image_ids)}
    missing = [image_id for image_id in truth.image_ids if image_id not in place]
    if missing:
        raise UserError(
            f"{prediction.path} lacks {len(missing)} of the {len(truth)} images of {truth.path}, like {missing[0]}; "
            "predict all of them"
        )
    sums = PanopticSums(truth.categories.things)
    with Meter("comparing", len(truth), unit="image") as meter:
        for index, image_id in enumerate(truth.image_ids):
            true, found = truth[index].segments(), prediction[place[image_id]].segments()
            if true.map.shape != found.map.shape:
                sizes = " and ".join("{}x{}".format(*segments.map.shape) for segments in (found, true))
                raise UserError(f"image {image_id}: prediction and truth are {sizes} pixels; predict it at full size")
            sums.update(found, true)
            meter.advance()
    return sums


def difference(truth: Annotations, prediction: Annotations) -> str:
    """The first category that differs, in words."""
    all_of = (truth.categories, prediction.categories)
    wanted, found = (list(zip(one.ids, one.names, one.things, strict=True)) for one in all_of)
    if len(found) != len(wanted):
        return f"there are {len(found)}, wanted {len(wanted)}"
    place = next(place for place in range(len(wanted)) if found[place] != wanted[place])
    return f"the one at place {place} is {found[place]}, wanted {wanted[place]} (id, name, is a thing)"


def class_records(sums: PanopticSums, categories: Categories) -> list[dict[str, Any]]:
    """The numbers of every class; those of one that is in no segment are None."""
    counts = zip(sums.matched.tolist(), sums.extra.tolist(), sums.missed.tolist(), strict=True)
    classes = zip(categories.names, categories.things, sums.quality().T.tolist(), counts, strict=True)
    columns = ("name", "thing", "PQ", "SQ", "RQ", "TP", "FP", "FN")
    rows = ((name, thing, *map(known, shares), *found) for name, thing, shares, found in classes)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def class_row(record: dict[str, Any]) -> list[str]:
    shares = (percent(record[name]) for name in ("PQ", "SQ", "RQ"))
    counts = (str(record[name]) for name in ("TP", "FP", "FN"))
    return [record["name"], "thing" if record["thing"] else "stuff", *shares, *counts]


def percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.2f}"


def draw_segments(what: Path, photos: Path, to: Path, only: Sequence[str]) -> None:
    """TO/ID.png for the images of a panoptic file, or for some of them: segments over the photograph, with a legend."""
    found = read_annotations(annotation_file(what))
    if to.resolve() in (photos.resolve(), found.folder.resolve()):
        raise UserError(f"--to {to} holds what is drawn from, and would lose it; name another folder")
    names = [Path(name).stem for name in found.scene_photos()]
    if unknown := [name for name in only if name not in names]:
        raise UserError(f"{found.path} has no image {unknown[0]}; its images are called like {names[0]}")
    chosen = [index for index, name in enumerate(names) if not only or name in only]
    with no_empty_folders(to), Meter("drawing", len(chosen), unit="image") as meter:
        with writing(to):
            to.mkdir(parents=True, exist_ok=True)
        for index in chosen:
            segments = found[index].segments()
            drawn = drawn_over(photo_path(photos, names[index]), segments, found.categories)
            write_atomic(to / f"{names[index]}.png", partial(drawn.save, format="PNG"))
            meter.advance()
    print(f"{len(chosen)} pictures in {to}")


def drawn_over(path: Path, segments: Segments, categories: Categories) -> Image.Image:
    """Segments over the photograph of a file. Raises UserError where their sizes differ."""
    picture = photo(path.read_bytes(), f"image {path}")
    if picture.shape[1:] != segments.map.shape:
        sizes = "{}x{}".format(*picture.shape[1:]), "{}x{}".format(*segments.map.shape)
        raise UserError(f"image {path} is {sizes[0]} (height x width), its segments are {sizes[1]}; see --images")
    return segment_overlay(picture, segments, categories)


def photo_path(folder: Path, name: str) -> Path:
    """The photograph of that name, whatever its ending. Raises UserError."""
    found = [path for path in sorted(folder.glob(f"{glob.escape(name)}.*")) if path.suffix.lower() in PHOTO_SUFFIXES]
    if not found:
        raise UserError(f"{folder} holds no photograph {name}; set --images to the folder of the photographs")
    return found[0]
