"""Each problem of a data set is found and named, all in one go; counts agree with counting by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from kappaseg_core.config import DataConfig
from kappaseg_core.errors import UserError
from kappaseg_core.scenes.check import LEAK, SPLIT, DataCheck, check_scenes, first_few
from kappaseg_core.scenes.flaws import MissingMask, SceneFlaw, SizesDiffer, UnknownValues
from kappaseg_core.scenes.packing import pack

if TYPE_CHECKING:
    from .conftest import DataFolder


def check(folder: DataFolder, *splits: str) -> DataCheck:
    return check_scenes(folder.config(), splits or None)


def only(found: DataCheck, kind: str) -> str:
    """The one line there is, which is of that kind."""
    assert list(found.flaws) == [kind]
    (line,) = found.flaws[kind]
    return line


def test_a_clean_folder_has_no_flaw(filled: DataFolder) -> None:
    assert check(filled).flaws == {}


def test_training_and_validation_come_first_then_the_other_splits(filled: DataFolder) -> None:
    for split in ("a", "z"):
        filled.write_split(split, ["a"])
    assert [split.split for split in check(filled).splits] == ["train", "val", "a", "z"]
    assert [split.split for split in check(filled, "z", "val", "z").splits] == ["z", "val"]


def test_counts_agree_with_counting_by_hand(folder: DataFolder) -> None:
    """Masks of 2x3 pixels; classes 0 1 | 1 1 4 and one pixel ignored | nothing but ignored."""
    masks = {"a": [[0, 1, 1], [0, 0, 0]], "b": [[1, 4, 255], [1, 1, 2]], "c": [[255] * 3] * 2}
    for image_id, mask in masks.items():
        folder.write_photo(f"{image_id}.png", np.full((2, 3, 3), ord(image_id), np.uint8))
        folder.write_mask(image_id, np.array(mask, np.uint8))
    folder.write_split("train", list(masks))
    found = check(folder)
    (train,) = found.splits
    assert found.class_names == folder.open().class_names
    assert (train.images, train.flawed) == (3, 0)
    assert train.labels_per_image.tolist() == [2, 3, 0]
    assert train.images_with.tolist() == [1, 2, 1, 0, 1]
    assert (train.pixels, train.unlabelled) == (18, 7)
    assert found.notes == ("split train: 1 scene without a labelled pixel",)


def test_values_outside_the_vocabulary_are_found_and_counted(filled: DataFolder) -> None:
    filled.write_mask("a", np.full((5, 9), 200, np.uint8))
    filled.write_mask("d", np.array([[77, 200], [200, 77]], np.uint8))
    found = check(filled)
    assert set(found.flaws) == {UnknownValues.kind}
    first, second = found.flaws[UnknownValues.kind]
    assert "a.png holds value 200 (45 pixels)" in first
    assert "d.png holds value 77 (2 pixels), 200 (2 pixels)" in second
    assert found.unknown_values == {77: 1, 200: 2}


def test_a_mask_of_another_size_is_found(filled: DataFolder) -> None:
    filled.write_mask("b", np.zeros((3, 3), np.uint8))
    found = check(filled)
    assert "b.png is 6x8 (height x width)" in only(found, SizesDiffer.kind)
    assert [split.flawed for split in found.splits] == [1, 0]


def test_a_missing_mask_is_found(filled: DataFolder) -> None:
    (filled.root / "masks" / "b.png").unlink()
    assert "masks/b.png does not exist" in only(check(filled), MissingMask.kind)


@pytest.mark.parametrize("name", ["images/a.jpg", "masks/a.png"])
def test_a_truncated_file_is_found(filled: DataFolder, name: str) -> None:
    path = filled.root / name
    path.write_bytes(path.read_bytes()[:-40])  # more than the trailer, without which a PNG still has all its pixels
    assert str(path) in only(check(filled), SceneFlaw.kind)


def test_image_and_mask_of_one_scene_are_both_looked_at(filled: DataFolder) -> None:
    (filled.root / "images" / "a.jpg").write_bytes(b"")
    filled.write_mask("a", np.full((5, 9), 200, np.uint8))
    found = check(filled)
    assert {kind: len(lines) for kind, lines in found.flaws.items()} == {SceneFlaw.kind: 1, UnknownValues.kind: 1}
    assert found.splits[0].flawed == 1


def test_images_listed_twice_or_not_there_are_found(filled: DataFolder) -> None:
    filled.write_split("train", ["a", "b", "a", "nope", "c"])
    found = check(filled)
    assert list(found.flaws) == [SPLIT]
    twice, missing = found.flaws[SPLIT]
    assert "lists image a 2 times" in twice and "image nope of split 'train' is not in" in missing
    assert found.splits[0].images == 3


def test_an_image_in_training_and_validation_is_a_flaw(filled: DataFolder) -> None:
    filled.write_split("val", ["d", "a", "é", "b"])
    assert only(check(filled), LEAK) == (
        "splits train and val share 2 images: a, b; take each one out of one of the splits"
    )


def test_images_that_other_splits_share_are_a_note(filled: DataFolder) -> None:
    filled.write_split("official", ["a", "d"])
    found = check(filled)
    assert found.flaws == {}
    assert "images that splits share: train and official 1, val and official 1" in found.notes


def test_which_splits_train_and_validate_is_configured(filled: DataFolder) -> None:
    filled.write_split("official", ["a", "d"])
    found = check_scenes(DataConfig(root=str(filled.root), train="train", val="official"))
    assert "splits train and official share 1 image: a" in only(found, LEAK)


def test_one_picture_under_two_ids_is_a_note(filled: DataFolder) -> None:
    Image.open(filled.root / "images" / "b.png").save(filled.root / "images" / "d.bmp")
    (filled.root / "images" / "d.jpg").unlink()
    filled.write_mask("d", np.zeros((6, 8), np.uint8))
    found = check(filled)
    assert found.flaws == {}
    assert "the same picture under 2 ids: b, d" in found.notes


def test_classes_that_only_validation_shows_are_a_note(filled: DataFolder) -> None:
    for image_id, shape in (("a", (5, 9)), ("b", (6, 8)), ("c", (7, 7))):
        filled.write_mask(image_id, np.full(shape, 2, np.uint8))
    filled.write_mask("d", np.full((8, 6), 3, np.uint8))
    filled.write_mask("é", np.full((9, 5), 2, np.uint8))
    assert check(filled).notes == ("1 class of val not in train: class 3",)


def test_all_problems_are_found_in_one_go(filled: DataFolder) -> None:
    (filled.root / "images" / "a.jpg").write_bytes(b"")
    filled.write_mask("b", np.full((6, 8), 200, np.uint8))
    (filled.root / "masks" / "c.png").unlink()
    filled.write_mask("d", np.zeros((1, 1), np.uint8))
    filled.write_split("val", ["d", "é", "é", "a"])
    found = check(filled, "train", "val", "nope")
    kinds = {SPLIT: 2, SceneFlaw.kind: 1, UnknownValues.kind: 1, MissingMask.kind: 1, SizesDiffer.kind: 1, LEAK: 1}
    assert {kind: len(lines) for kind, lines in found.flaws.items()} == kinds
    assert [(split.split, split.images, split.flawed) for split in found.splits] == [("train", 3, 3), ("val", 3, 2)]
    assert all("\n" not in line for lines in found.flaws.values() for line in lines)


def test_a_class_file_that_is_missing_is_said_once(filled: DataFolder) -> None:
    (filled.root / "classes.txt").unlink()
    assert "classes.txt does not exist" in only(check(filled), SPLIT)


def test_a_folder_without_splits_is_one_error(filled: DataFolder, tmp_path: Path) -> None:
    for path in (filled.root / "splits").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"splits holds no <split>\.txt file; write the image ids"):
        check(filled)
    with pytest.raises(UserError, match=r"data\.root .*none does not exist"):
        check_scenes(DataConfig(root=str(tmp_path / "none")))


def test_a_packed_file_gives_the_counts_of_its_folder(filled: DataFolder, tmp_path: Path) -> None:
    pack([filled.open("train"), filled.open("val")], tmp_path / "x.h5")
    folder, file = check(filled), check_scenes(DataConfig(kind="packed", root=str(tmp_path / "x.h5")))
    assert file.class_names == folder.class_names and file.notes == folder.notes and file.flaws == {}
    for one, other in zip(file.splits, folder.splits, strict=True):
        assert one.labels_per_image.tolist() == other.labels_per_image.tolist()
        assert one.images_with.tolist() == other.images_with.tolist()
        assert (one.split, one.pixels, one.unlabelled) == (other.split, other.pixels, other.unlabelled)


def test_a_packed_file_is_read_on_after_a_bad_sample(filled: DataFolder, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    pack([filled.open("train"), filled.open("val")], path)
    data = path.read_bytes()
    photo = filled.open("train").image_bytes(0)
    path.write_bytes(data.replace(photo, photo[:50] + b"damage" + photo[56:]))
    found = check_scenes(DataConfig(kind="packed", root=str(path)))
    assert f"image of sample c in {path} is damaged" in only(found, SceneFlaw.kind)
    assert [len(split.labels_per_image) for split in found.splits] == [2, 2]


def test_synthetic_scenes_are_clean() -> None:
    found = check_scenes(DataConfig(kind="synthetic", options={"classes": 8, "train": 4, "val": 2, "size": 32}))
    assert found.flaws == {}
    assert [(split.split, split.images, split.pixels) for split in found.splits] == [
        ("train", 4, 4096),
        ("val", 2, 2048),
    ]
    assert found.splits[0].unlabelled == 4 * round(0.03 * 1024)


def test_long_lists_say_how_many_there_are_more() -> None:
    assert first_few(list("abcdefg")) == "a, b, c, d, e and 2 more"
    assert first_few(list("abcde")) == "a, b, c, d, e"
