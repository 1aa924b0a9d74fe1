"""`kappaseg panoptic`: truth written, predictions measured and drawn; mistakes in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.panoptic_files import Categories
from kappaseg_core.segments import Segments
from pipelines.cli import main
from pipelines.panoptic import photo_path
from pipelines.segment_files import SegmentFiles
from tests.kappaseg_core.scenes.panoptic_miniature import CATEGORIES, IMAGES, draw

SYNTHETIC = ["--data.kind", "synthetic", "--data.options.objects", "2", "--data.options.val", "3"]
# Image 139 has a person, another person, a banner, a crowd of cars; image 285 a car. Here the car is lost but for a
# third, the second person is called a car, and something lies on the crowd.
PREDICTED = {
    "000000000139": ([[1, 1, 2, 2, 2], [1, 3, 3, 4, 4]], [(1, 92, 0), (2, 1, 0), (3, 3, 0), (4, 3, 0)]),
    "000000000285": ([[0, 0], [1, 0], [0, 0]], [(1, 3, 0)]),
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: truth.json, found.json, photos/."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "truth.json", IMAGES, photos=tmp_path / "photos")
    draw(tmp_path / "found.json", PREDICTED)
    return tmp_path


def refused(words: Sequence[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    assert main(["panoptic", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kappaseg: ")]
    assert wanted in line
    assert sorted(Path().rglob("*")) == before


def test_quality_is_printed_and_written_as_worked_out_by_hand(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """person: one match of IoU 1 (void counts for nothing), one miss: PQ 1/1.5. banner: 1. car: the first is extra, the
    one on the crowd is not, the last has IoU 1/4 and is an extra and a miss: 0."""
    assert main(["panoptic", "quality", "truth.json", "found.json", "--classes", "--to", "q.json"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["all", "55.56", "66.67", "55.56", "3"] in rows
    assert ["things", "33.33", "50.00", "33.33", "2"] in rows and ["stuff", "100.00", "100.00", "100.00", "1"] in rows
    assert ["person", "thing", "66.67", "100.00", "66.67", "1", "0", "1"] in rows
    assert ["car", "thing", "0.00", "0.00", "0.00", "0", "2", "1"] in rows
    record = json.loads((files / "q.json").read_text())
    assert record["PQ_things"] == pytest.approx(1 / 3) and record["images"] == 2
    assert record["classes"][1] == {
        "name": "banner", "thing": False, "PQ": 1, "SQ": 1, "RQ": 1, "TP": 1, "FP": 0, "FN": 0
    }  # fmt: skip


def test_a_class_in_no_segment_is_a_dash_and_null(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = {"000000000285": IMAGES["000000000285"]}
    draw(files / "one.json", only)
    assert main(["panoptic", "quality", "one.json", "one.json", "--to", "q.json"]) == 0
    assert ["stuff", "–", "–", "–", "0"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    record = json.loads((files / "q.json").read_text())
    assert record["PQ_stuff"] is None and record["classes"][0]["PQ"] is None and record["PQ"] == 1


def test_the_truth_of_a_data_set_is_written_measured_and_drawn(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["panoptic", "write", "-", "out", *SYNTHETIC]) == 0
    assert "out/panoptic.json: 3 images" in capsys.readouterr().out
    assert main(["panoptic", "quality", "out", "out/panoptic.json"]) == 0
    assert ["all", "100.00", "100.00", "100.00"] in [line.split()[:4] for line in capsys.readouterr().out.splitlines()]
    for image_id in ("val-000000", "val-000001"):
        Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(files / "photos" / f"{image_id}.png")
    words = ["panoptic", "draw", "out", "--images", "photos", "--to", "pictures", "--only", "val-000000", "val-000001"]
    assert main(words) == 0
    assert sorted(path.name for path in (files / "pictures").iterdir()) == ["val-000000.png", "val-000001.png"]


def test_a_set_with_ids_of_its_own_is_written_with_them(files: Path) -> None:
    (files / "annotations").mkdir()
    for split in ("train", "val"):
        draw(files / "annotations" / f"panoptic_{split}2017.json", IMAGES, photos=files / f"{split}2017")
    assert main(["panoptic", "write", ".", "out", "--data.kind", "coco_panoptic", "--split", "train"]) == 0
    content = json.loads((files / "out" / "panoptic.json").read_text())
    assert [category["id"] for category in content["categories"]] == [1, 92, 3]
    assert [found["image_id"] for found in content["annotations"]] == [139, 285]
    assert {info["category_id"] for info in content["annotations"][0]["segments_info"]} == {1, 92, 3}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["quality", "truth.json"], "write kappaseg panoptic quality TRUTH PREDICTION"),
        (["quality", "truth.json", "nowhere"], "nowhere does not exist; give a JSON file"),
        (["quality", "photos", "found.json"], "photos holds no panoptic.json"),
        (["quality", "truth.json", "found.json", "--split", "val"], "--split is not for quality; write"),
        (["quality", "truth.json", "found.json", "--data.root", "x"], "--data.root is not for quality, which reads no"),
        (["write", "-", "--data.kind", "synthetic"], "write kappaseg panoptic write DATA FOLDER --split SPLIT"),
        (["write", "-", "out", "--data.kind", "synthetic"], "has label maps and no instance maps, wanted both"),
        (["write", "-", "out", *SYNTHETIC, "--split", "test"], "split 'test' is not there"),
        (["write", "nowhere", "out"], "nowhere does not exist; set it to the folder"),
        (["draw", "found.json", "--to", "out"], "write kappaseg panoptic draw SEGMENTS --images DIR --to DIR"),
        (["draw", "found.json", "--to", "out", "--images", "found"], "photographs"),
        (["draw", "found.json", "--to", "out", "--images", "photos", "--only", "x"], "has no image x; its images are"),
        (["draw", "found.json", "--to", "photos", "--images", "photos"], "--to photos holds what is drawn from"),
        (["draw", "found.json", "--to", "./found", "--images", "photos"], "--to found holds what is drawn from"),
        (["quality", "truth.json", "found.json", "--to", "truth.json"], "--to truth.json is one of the files"),
        (["quality", "truth.json", "found.json", "--to", "./found.json"], "--to found.json is one of the files"),
        (["paint", "found.json"], "invalid choice: 'paint'"),
    ],
)
def test_a_mistake_is_one_line_and_makes_nothing(
    files: Path, words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if wanted == "photographs":
        for picture in (files / "found").iterdir():
            picture.rename(files / "found" / f"{picture.stem}.PNG")
    refused(words, wanted if wanted != "photographs" else "cannot be read: no such file", capsys)


def test_predictions_that_do_not_belong_to_the_truth_are_refused(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quality", "truth.json", "other.json"]
    draw(files / "other.json", {"000000000139": PREDICTED["000000000139"]})
    refused(words, "lacks 1 of the 2 images of truth.json, like 1; predict all of them", capsys)
    draw(files / "other.json", PREDICTED, categories=[{**CATEGORIES[0], "isthing": 0}, *CATEGORIES[1:]])
    refused(words, "the one at place 0 is (1, 'person', False), wanted (1, 'person', True)", capsys)
    draw(files / "other.json", PREDICTED, categories=[*CATEGORIES, {**CATEGORIES[0], "id": 4}])
    refused(words, "other categories than truth.json; there are 4, wanted 3", capsys)
    draw(files / "other.json", {**PREDICTED, "000000000285": ([[1, 1]], [(1, 3, 0)])})
    refused(words, "image 1: prediction and truth are 1x2 and 3x2 pixels; predict it at full size", capsys)


def test_truth_is_not_written_over_other_files(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["panoptic", "write", "-", "out", *SYNTHETIC]) == 0
    refused(["write", "-", "out", *SYNTHETIC], "out/panoptic.json is there already", capsys)


def test_two_images_of_one_number_are_not_written_as_one(tmp_path: Path) -> None:
    files = SegmentFiles(tmp_path, Categories.of(("grass",), (False,)))
    grass = Segments(torch.ones(1, 2, dtype=torch.int32), torch.tensor([0]), torch.tensor([False]))
    files.add("007", grass)
    with pytest.raises(UserError, match=r"images 007 and 7 are both 7 in panoptic\.json"):
        files.add("7", grass)


def test_a_photograph_is_found_by_its_name_as_it_stands(tmp_path: Path) -> None:
    for name in ("a[1].jpg", "a1.jpg"):
        (tmp_path / name).touch()
    assert photo_path(tmp_path, "a[1]") == tmp_path / "a[1].jpg"


def test_a_photograph_of_another_size_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (9, 9)).save(files / "photos" / "000000000139.jpg")
    words = ["draw", "truth.json", "--images", "photos", "--to", "out", "--only", "000000000139"]
    refused(words, "000000000139.jpg is 9x9 (height x width), its segments are 2x5", capsys)
