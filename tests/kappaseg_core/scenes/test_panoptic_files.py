"""COCO's panoptic files: read, written, read again; what is wrong with them in one line. And scenes of that kind."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kappaseg_core.config import DataConfig
from kappaseg_core.errors import UserError
from kappaseg_core.panoptic_quality import PanopticSums
from kappaseg_core.scenes import open_scenes, split_names, things_of
from kappaseg_core.scenes.check import check_scenes
from kappaseg_core.scenes.panoptic_files import Categories, read_annotations
from kappaseg_core.scenes.panoptic_writing import make_folders, write_annotations, write_segments
from kappaseg_core.scenes.synthetic import Options, SyntheticScenes
from kappaseg_core.segments import Segments, segments_of
from tests.kappaseg_core.scenes.panoptic_miniature import (
    BIG,
    CATEGORIES,
    IMAGES,
    INSTANCES,
    MASKS,
    draw,
    save_picture,
)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A root in COCO's layout, with a training split of two images and one image for validation."""
    for split, chosen in (("train", list(IMAGES)), ("val", list(IMAGES)[1:])):
        images = {image_id: IMAGES[image_id] for image_id in chosen}
        draw(tmp_path / "annotations" / f"panoptic_{split}2017.json", images, photos=tmp_path / f"{split}2017")
    return tmp_path


@pytest.fixture
def file(coco: Path) -> Path:
    return coco / "annotations" / "panoptic_train2017.json"


def test_colours_are_ids_and_segments_come_in_the_order_of_the_list(file: Path) -> None:
    found = read_annotations(file)
    assert found.categories == Categories(("person", "banner", "car"), (True, False, True), (1, 92, 3))
    assert found.image_ids == ("0", "1") and found.photos[0] == "000000000139.jpg"
    segments = found[0].segments()
    assert segments.labels.tolist() == [0, 1, 0, 2] and segments.crowd.tolist() == [False, False, False, True]
    assert segments.map.tolist() == [[2, 2, 1, 1, 0], [2, 3, 3, 4, 4]]


def test_label_and_instance_maps_are_those_worked_out_by_hand(file: Path) -> None:
    found = read_annotations(file)
    for index, image_id in enumerate(IMAGES):
        mask, instances = found[index].maps()
        assert (mask.tolist(), instances.tolist()) == (MASKS[image_id], INSTANCES[image_id])
        assert mask.dtype == instances.dtype == np.int32


def test_names_beyond_ascii_are_read_escaped_and_as_they_are(tmp_path: Path) -> None:
    categories = [{**CATEGORIES[0], "name": "piéton"}]
    for escape in (True, False):
        file = draw(tmp_path / f"{escape}.json", {"é": ([[4]], [(4, 1, 0)])}, categories=categories)
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")), ensure_ascii=escape), "utf-8")
        found = read_annotations(file)
        assert found.categories.names == ("piéton",) and found[0].maps()[0].tolist() == [[0]]


def test_what_is_written_is_read_as_it_was(tmp_path: Path) -> None:
    scenes = SyntheticScenes("train", Options(classes=12, train=4, size=40, objects=3))
    categories = Categories.of(scenes.class_names, things_of(scenes))
    truth = [
        segments_of(*map(torch.from_numpy, (scene.mask, scene.instances)), torch.tensor(scenes.things))
        for scene in map(scenes.__getitem__, range(4))
        if scene.instances is not None
    ]
    make_folders(tmp_path)
    written = [
        write_segments(tmp_path, image_id, found, categories)
        for image_id, found in zip(scenes.image_ids, truth, strict=True)
    ]
    found = read_annotations(write_annotations(tmp_path, written, categories))
    assert found.categories == categories and found.image_ids == scenes.image_ids
    sums = PanopticSums(categories.things)
    for index, wanted in enumerate(truth):
        same = found[index].segments()
        assert same.map.equal(wanted.map) and same.labels.equal(wanted.labels) and same.crowd.equal(wanted.crowd)
        sums.update(same, wanted)
    assert sums.summary()["PQ"] == 1 and int(sums.matched.sum()) == sum(map(len, truth))


def test_numbers_beyond_a_byte_crowds_and_segments_without_a_pixel_are_written_so_that_they_can_be_read(
    tmp_path: Path,
) -> None:
    count = 70_000
    numbers = torch.arange(1, count + 1, dtype=torch.int32).view(250, 280)
    numbers[numbers == 300] = 0
    crowd = torch.arange(count) == 500
    categories = Categories(("a", "b"), (True, False), (7, 3))
    make_folders(tmp_path)
    annotation = write_segments(tmp_path, "000000000139", Segments(numbers, torch.arange(count) % 2, crowd), categories)
    assert annotation["image_id"] == 139 and annotation["file_name"] == "000000000139.png"
    assert len(annotation["segments_info"]) == count - 1
    assert annotation["segments_info"][500 - 1] == {"id": 501, "category_id": 7, "iscrowd": 1, "area": 1}
    found = read_annotations(write_annotations(tmp_path, [annotation], categories))[0].segments()
    assert found.map.equal(torch.where(numbers > 300, numbers - 1, numbers)) and int(found.crowd.nonzero()) == 499


def test_a_prediction_may_leave_the_categories_to_the_truth(tmp_path: Path, file: Path) -> None:
    bare = draw(tmp_path / "bare.json", {"x": ([[1]], [(1, 3, 0)])}, categories=[])
    assert read_annotations(bare, None, read_annotations(file).categories)[0].segments().labels.tolist() == [2]
    with pytest.raises(UserError, match="has no categories"):
        read_annotations(bare)


# What is wrong with files


def damage(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def change(file: Path) -> None:
        content = json.loads(file.read_text())
        edit(content)
        file.write_text(json.dumps(content))

    return change


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (lambda file: file.write_text("{"), "is no whole JSON object"),
    (lambda file: file.with_suffix("").rename(file.parent / "x"), "is no folder; unpack them there"),
    (damage(lambda c: c.update(annotations=[])), "has no annotations"),
    (damage(lambda c: c.update(annotations=c["annotations"] * 2)), "annotates image 0 more than once"),
    (damage(lambda c: c["annotations"][0].pop("segments_info")), "an entry of annotations is not as in COCO's"),
    (damage(lambda c: c["categories"][0].pop("isthing")), "categories lack 'isthing'"),
    (damage(lambda c: c["categories"].pop(1)), "a segment of category 92, which is not among its categories"),
    (damage(lambda c: c["annotations"][0]["segments_info"].pop(1)), "000000000139.png has segment 7, which"),
    (
        lambda file: save_picture(file.with_suffix("") / "000000000139.png", [[7, BIG, 256]]),
        "000000000139.png has no pixel of segment 9, which",
    ),
    (lambda file: (file.with_suffix("") / "000000000139.png").unlink(), "cannot be read: no such file"),
    (lambda file: Image.new("L", (5, 2)).save(file.with_suffix("") / "000000000139.png"), "is of mode L, wanted RGB"),
    (lambda file: (file.with_suffix("") / "000000000139.png").write_bytes(b"\x89PNG"), "is no picture of a known"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), WRONG)
def test_a_file_that_is_wrong_is_one_line(file: Path, spoil: Callable[[Path], object], words: str) -> None:
    spoil(file)
    with pytest.raises(UserError) as error:
        read_annotations(file)[0].segments()
    assert words in str(error.value) and "\n" not in str(error.value)


# As a data set


def test_scenes_are_read_as_downloaded_and_pass_the_check(coco: Path) -> None:
    data = DataConfig(kind="coco_panoptic", root=str(coco))
    assert split_names(data) == ("train", "val")
    scenes = pickle.loads(pickle.dumps(open_scenes(data, "train")))
    assert scenes.class_names == ("person", "banner", "car") and things_of(scenes) == (True, False, True)
    assert scenes.image_ids == tuple(IMAGES)
    for index, image_id in enumerate(IMAGES):
        scene = scenes[index]
        assert (scene.mask.tolist(), scene.instances.tolist()) == (MASKS[image_id], INSTANCES[image_id])
        assert scene.image.shape[1:] == scene.mask.shape
    found = check_scenes(data)
    assert list(found.flaws) == ["image in training and validation"]  # so the fixture was drawn
    assert [split.objects.per_image.tolist() for split in found.splits if split.objects] == [[2, 1], [1]]


def test_a_map_is_turned_with_its_photo(coco: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    Image.new("RGB", (2, 3), "red").save(coco / "val2017" / "000000000285.jpg", exif=exif)
    scene = open_scenes(DataConfig(kind="coco_panoptic", root=str(coco)), "val")[0]
    assert scene.image.shape == (3, 2, 3) and scene.mask.tolist() == np.rot90(MASKS["000000000285"], -1).tolist()
    assert scene.instances is not None and scene.instances.tolist() == [[1, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"annotations": "x_{split}.json"}, "x_train.json does not exist; splits there are: none"),
        ({"annotations": "x.json"}, "data.options.annotations = 'x.json', wanted {split} in it"),
        ({"segments": "nowhere"}, "nowhere is no folder"),
        ({"images": "nowhere"}, "nowhere/000000000139.jpg does not exist"),
    ],
)
def test_files_that_are_elsewhere_are_named(coco: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(UserError) as error:
        open_scenes(DataConfig(kind="coco_panoptic", root=str(coco), options=options), "train")[0]
    assert words in str(error.value)
