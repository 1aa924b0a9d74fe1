"""COCO+LVIS: its table of values, and what is said of sources that are not it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.published.coco_lvis import CLASSES, SHARED, STUFF, Options, find, stuff_values
from pipelines.cli import main
from tests.kappaseg_core.scenes.published.miniatures.coco_lvis import SHARED as SHARED_NAMES
from tests.kappaseg_core.scenes.published.miniatures.coco_lvis import change, make


def test_stuff_that_lvis_has_too_carries_the_same_name_there() -> None:
    assert {category: CLASSES[value - 1] for category, value in SHARED.items()} == SHARED_NAMES


def test_the_other_stuff_follows_the_1203_things_in_the_order_of_its_ids() -> None:
    table = stuff_values("corrected")
    own = [category for category in STUFF if category not in SHARED]
    assert table[own].tolist() == list(range(1204, 1285))
    assert [CLASSES[table[category] - 1] for category in (94, 110, 181, 182)] == [
        "branch", "desk-stuff", "window-other", "wood",
    ]  # fmt: skip
    assert not table[:92].any() and table[183] == 0


def test_the_published_variant_is_a_chain_of_replacements_which_moves_blanket_and_cabinet_alone() -> None:
    corrected, chained = stuff_values("corrected"), np.arange(184)
    for category in range(92, 184):  # what the generator does to its map
        chained[chained == category] = corrected[category]
    table = stuff_values("published")
    assert np.array_equal(table[92:], chained[92:])
    assert np.flatnonzero(table != corrected).tolist() == [93, 98]
    assert [CLASSES[table[category] - 1] for category in (93, 98)] == ["desk-stuff", "window-other"]


def test_images_of_val_are_found_in_the_folder_that_lvis_names(tmp_path: Path) -> None:
    make(tmp_path)
    folders = {item.image_id: (item.split, item.photo.parent.name) for item in find(tmp_path, Options()).items}
    assert folders["000000000030"] == ("val", "train2017")
    assert folders["000000000139"] == ("val", "val2017")


def test_annotations_may_lie_as_detectron2_has_them(tmp_path: Path) -> None:
    make(tmp_path / "coco")
    (tmp_path / "lvis").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"coco/lvis_v1_{split}.json").rename(tmp_path / f"lvis/lvis_v1_{split}.json")
    assert len(find(tmp_path, Options()).items) == 5


def test_masks_of_another_set_in_the_folder_of_annotations_are_not_taken_for_photos(tmp_path: Path) -> None:
    """images/ and annotations/{train,val}2017 are how mmseg has COCO-Stuff 164k; the photos are the same."""
    make(tmp_path)
    (tmp_path / "images").mkdir()
    for folder in ("train2017", "val2017"):
        (tmp_path / folder).rename(tmp_path / "images" / folder)
        (tmp_path / "annotations" / folder).mkdir()
    assert all(item.photo.exists() for item in find(tmp_path, Options()).items)


@pytest.mark.parametrize(
    "name",
    ["lvis_v1_train.json", "lvis_v1_val.json", "annotations/stuff_train2017.json", "annotations/stuff_val2017.json"],
)
def test_a_missing_file_is_one_line_with_its_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "source")
    (tmp_path / "source" / name).unlink()
    assert (
        main(["data", "prepare", "coco_lvis", "--source", str(tmp_path / "source"), "--to", str(tmp_path / "to")]) == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert f"holds no {Path(name).name} (looked in" in line and "stuff_annotations_trainval2017.zip" in line


def test_missing_photos_of_a_folder_are_one_line(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "val2017").rename(tmp_path / "val")
    with pytest.raises(UserError, match="holds no val2017"):
        find(tmp_path, Options())


@pytest.mark.parametrize(
    "edit, what",
    [
        (lambda content: content["categories"][49].update(name="flag"), "category 50 = 'flag', wanted 'banner'"),
        (lambda content: content["categories"].pop(299), "lacks 1 categories, like 300"),
        (lambda content: content.pop("categories"), "lacks 1203 categories, like 1"),
        (lambda content: content["categories"].append(content["categories"][0]), "the record of categories at byte"),
        (lambda content: content["annotations"][1].pop("image_id"), "the record of annotations at byte"),
        (lambda content: content["annotations"].append(5), "the record of annotations at byte"),
        (lambda content: content["images"][0].pop("height"), "an image is none of COCO 2017 (KeyError('height'))"),
        (lambda content: content["images"][0].update(coco_url="x/test2017/1.jpg"), "KeyError('test2017')"),
        (lambda content: content["images"][0].update(coco_url=None), "an image is none of COCO 2017"),
    ],
)
def test_a_file_that_is_not_lvis_v1_is_one_line(edit: Callable[[Any], object], what: str, tmp_path: Path) -> None:
    make(tmp_path)
    change(tmp_path / "lvis_v1_train.json", edit)
    with pytest.raises(UserError) as caught:
        find(tmp_path, Options())
    assert what in str(caught.value) and "lvis_v1_train.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_was_not_downloaded_to_its_end_is_one_line(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "annotations" / "stuff_train2017.json"
    path.write_text(path.read_text()[:500])
    with pytest.raises(
        UserError, match=r"stuff_train2017\.json is no whole JSON object: .*: make or download it again"
    ):
        find(tmp_path, Options())


def test_an_unknown_remap_names_the_two_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "source").source
    words = ["data", "prepare", "coco_lvis", "--source", str(source), "--to", str(tmp_path / "to")]
    assert main([*words, "--options.remap", "fixed"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "corrected" in line and "published" in line


def test_two_workers_make_the_same_as_one(tmp_path: Path, set_sizes: Any) -> None:
    miniature = make(tmp_path / "source")
    set_sizes(miniature, miniature.counts)
    assert main(miniature.words(tmp_path / "one")) == 0
    assert main([*miniature.words(tmp_path / "two"), "--workers", "2"]) == 0
    for mask in (tmp_path / "one" / "masks").iterdir():
        assert mask.read_bytes() == (tmp_path / "two" / "masks" / mask.name).read_bytes()
