"""Sources of single sets: which folders are understood, and what is said of lists and files that are not theirs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.published import Item, published_set, set_names
from kappaseg_core.scenes.published.coco_stuff_classes import CLASS_IDS, CLASSES
from kappaseg_core.scenes.published.matlab import matrix
from kappaseg_core.scenes.published.pascal_context import RAW_IDS
from tests.kappaseg_core.scenes.published.conftest import MAKERS
from tests.kappaseg_core.scenes.published.miniature import draw_mask, draw_matrix


def items(name: str, source: Path) -> list[Item]:
    module = published_set(name)
    return list(module.find(source, module.Options()).items)


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("ade20k", [".", "ADEChallengeData2016"]),
        ("pascal_voc", [".", "VOCdevkit", "VOCdevkit/VOC2012"]),
        ("coco_stuff10k", [".", "cocostuff-10k-v1.1"]),
    ],
)
def test_the_folder_that_an_archive_makes_and_those_above_it_are_the_same_source(
    name: str, folders: list[str], tmp_path: Path
) -> None:
    MAKERS[name](tmp_path)
    found = [items(name, tmp_path / folder) for folder in folders]
    assert len(found[0]) == 3
    assert all(
        [(item.split, item.image_id, item.photo.resolve()) for item in each]
        == [(item.split, item.image_id, item.photo.resolve()) for item in found[0]]
        for each in found
    )


@pytest.mark.parametrize("name", set_names())
def test_a_folder_without_the_set_is_one_line_that_says_what_to_download(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        items(name, tmp_path)
    assert str(tmp_path) in str(error.value) and "unpack" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "lines",
    [
        "Idx\tRatio\tTrain\tVal\tName\n1\t0.1576\t11664\t1172\twall\n2\t0.1072\t6046\t612\tbuilding, edifice \n",
        "Idx,Ratio,Train,Val,Stuff,Name\n1,0.1576,11664,1172,1,wall\n2,0.1072,6046,612,1,building;edifice\n",
        "Idx,Ratio,Train,Val,Name\r\n1,0.1576,11664,1172,wall\r\n2 ,0.1072,6046,612,building; edifice\r\n",
    ],
    ids=["tabs", "commas", "commas and blanks"],
)
def test_the_own_names_of_ade20k_are_understood_in_either_table(lines: str, tmp_path: Path) -> None:
    MAKERS["ade20k"](tmp_path)
    (tmp_path / "ADEChallengeData2016" / "objectInfo150.txt").write_bytes(lines.encode())
    assert len(items("ade20k", tmp_path)) == 3


def write_object_info(root: Path) -> Path:
    file = root / "ADEChallengeData2016" / "objectInfo150.txt"
    file.write_text("Idx\tRatio\tTrain\tVal\tName\n1\t0.1576\t11664\t1172\tbuilding, edifice\n")
    return file


def write_459(root: Path) -> Path:
    (root / "labels.txt").write_text("2: aeroplane\n9: bed\n")
    return root / "labels.txt"


def write_coco_stuff(root: Path) -> Path:
    file = root / "cocostuff-10k-v1.1" / "cocostuff-labels.txt"
    file.write_text("0: unlabeled\n1: bicycle\n")
    return file


@pytest.mark.parametrize(
    ("name", "write", "wanted"),
    [
        ("ade20k", write_object_info, "has the class 'building, edifice' where ADE20K has 'wall'"),
        ("pascal_context", write_459, "calls class 9 'bed', wanted 'bag'"),
        ("coco_stuff10k", write_coco_stuff, "calls class 1 'bicycle', wanted 'person'"),
    ],
)
def test_a_list_of_other_classes_in_the_source_is_refused(
    name: str, write: Callable[[Path], Path], wanted: str, tmp_path: Path
) -> None:
    maker = next(make for variant, make in MAKERS.items() if variant.split()[0] == name)
    maker(tmp_path)
    file = write(tmp_path)
    with pytest.raises(UserError, match=wanted) as error:
        items(name, tmp_path)
    assert str(file) in str(error.value)


def test_the_published_list_of_coco_stuff_is_accepted(tmp_path: Path) -> None:
    MAKERS["coco_stuff10k"](tmp_path)
    unused = {12: "street sign", 91: "hair brush"}
    lines = {0: "unlabeled", **unused, **{raw: CLASSES[label] for raw, label in CLASS_IDS.items()}}
    file = tmp_path / "cocostuff-10k-v1.1" / "cocostuff-labels.txt"
    file.write_text("".join(f"{raw}: {lines[raw]}\n" for raw in sorted(lines)))
    assert len(items("coco_stuff10k", tmp_path)) == 3


def test_ids_of_the_59_and_of_coco_stuff_rise_with_their_names() -> None:
    assert list(RAW_IDS.values()) == sorted(RAW_IDS.values()) and list(RAW_IDS) == sorted(RAW_IDS)
    assert len(RAW_IDS) == 59 and len(CLASS_IDS) == len(CLASSES) == 171
    assert sum(raw <= 91 for raw in CLASS_IDS) == 80  # things


def test_published_masks_count_where_cityscapes_has_converted_ones_beside_them(tmp_path: Path) -> None:
    MAKERS["cityscapes"](tmp_path)
    drawn = items("cityscapes", tmp_path)
    for item in drawn:
        draw_mask(item.mask.with_name(f"{item.image_id}_gtFine_labelTrainIds.png"), [[0]])
    assert items("cityscapes", tmp_path) == drawn


@pytest.mark.parametrize("version", [5, 7])
def test_a_matrix_is_read_row_by_row_from_both_generations_of_files(version: int, tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.uint16).reshape(2, 3)
    file = draw_matrix(tmp_path / "x.mat", "S", values, version=version)
    assert matrix(file, "S").tolist() == values.tolist()
    with pytest.raises(UserError, match=r"x\.mat has no variable LabelMap"):
        matrix(file, "LabelMap")


@pytest.mark.parametrize("version", [5, 7])
def test_a_damaged_matrix_is_one_line(version: int, tmp_path: Path) -> None:
    file = draw_matrix(tmp_path / "x.mat", "S", np.arange(5000, dtype=np.uint16).reshape(50, 100), version=version)
    data = file.read_bytes()
    for part in (data[: len(data) // 2], data[:130], b"text", b""):
        file.write_bytes(part)
        with pytest.raises(UserError, match=r"x\.mat (is damaged|has no variable)") as error:
            matrix(file, "S")
        assert "\n" not in str(error.value)


def test_a_variable_that_is_no_matrix_of_numbers_is_refused(tmp_path: Path) -> None:
    savemat(tmp_path / "x.mat", {"S": np.zeros((2, 2, 3)), "names": {"a": 1}})
    with h5py.File(tmp_path / "group.mat", "w") as file:
        file.create_group("S")
    for name, variable in (("x.mat", "S"), ("x.mat", "names"), ("group.mat", "S")):
        with pytest.raises(UserError, match=rf"{name}: {variable} has .*, wanted a matrix of numbers"):
            matrix(tmp_path / name, variable)


@pytest.mark.parametrize("variant", ["coco_stuff10k", "pascal_context 60"])
def test_without_scipy_the_extra_that_brings_it_is_named_before_any_image(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MAKERS[variant](tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"need scipy, which is missing; pip install 'kappaseg\[data\]'"):
        items(variant.split()[0], tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "file"),
    [
        ("pascal_voc", {}, "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"),
        ("pascal_voc trainaug", {"train": "trainaug"}, "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt"),
        ("pascal_context 60", {}, "VOCdevkit/VOC2010/ImageSets/Main/train.txt"),
        ("coco_stuff10k", {}, "cocostuff-10k-v1.1/imageLists/test.txt"),
    ],
)
def test_a_missing_list_is_named(name: str, options: dict[str, str], file: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    (tmp_path / file).unlink()
    module = published_set(name.split()[0])
    with pytest.raises(UserError, match=rf"{file} does not exist; unpack"):
        module.find(tmp_path, module.Options(**options))


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    """Some systems put a ._name beside each file that they unpack."""
    MAKERS["ade20k"](tmp_path)
    for kind, ending in (("images", "jpg"), ("annotations", "png")):
        (tmp_path / "ADEChallengeData2016" / kind / "training" / f"._ADE_train_00000001.{ending}").write_bytes(b"x")
    assert len(items("ade20k", tmp_path)) == 3
