"""`kappaseg data`: what is printed, and the exit status."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pipelines.cli import main


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training images and one for validation, 5x7 pixels, K = 3, 255 = no label."""
    root = tmp_path / "data"
    for name in ("images", "masks", "splits"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    for value, image_id in enumerate("abc"):
        Image.fromarray(np.full((5, 7, 3), 50 * value, np.uint8)).save(root / "images" / f"{image_id}.png")
        mask = np.full((5, 7), value % 2, np.uint8)
        mask[0] = 255
        Image.fromarray(mask).save(root / "masks" / f"{image_id}.png")
    (root / "splits" / "train.txt").write_text("a\nb\n")
    (root / "splits" / "val.txt").write_text("c\n")
    return root


def test_a_clean_data_set_is_said_to_be_clean(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "nothing wrong" in printed
    assert next(line.split() for line in printed.splitlines() if "train" in line) == [
        "train", "2", "0", "1.0", "1.0", "20.00", "1"
    ]  # fmt: skip
    assert "note: val lacks 2 of 3 classes: road, car" in printed


def test_every_flaw_is_printed_and_the_status_is_two(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "images" / "a.png").write_bytes(b"\x89PNG")
    (root / "masks" / "b.png").unlink()
    assert main(["data", "check", str(root)]) == 2
    printed = capsys.readouterr().out
    assert "unreadable file: 1" in printed and "a.png is no picture" in printed
    assert "image without a mask: 1" in printed and "b.png does not exist" in printed
    assert printed.rstrip().endswith("2 flaws")


def test_a_split_in_which_nothing_is_usable_is_still_shown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "masks" / "c.png").unlink()
    assert main(["data", "check", str(root), "--splits", "val"]) == 2
    printed = capsys.readouterr().out
    assert next(line.split() for line in printed.splitlines() if "val" in line) == ["val", "1", "1", "–", "–", "–", "3"]


def test_a_wrong_ignore_value_is_summed_up(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "splits" / "train.txt").write_text("".join(f"{i}\n" for i in range(8)))
    for image_id in range(8):
        Image.fromarray(np.full((5, 7, 3), 200 + image_id, np.uint8)).save(root / "images" / f"{image_id}.png")
        Image.fromarray(np.full((5, 7), 255, np.uint8)).save(root / "masks" / f"{image_id}.png")
    assert main(["data", "check", str(root), "--options.ignore", "null"]) == 2
    printed = capsys.readouterr().out
    assert "mask value outside the vocabulary: 9" in printed
    assert "… and 4 more masks" in printed
    assert "all such values: 255 in 9 masks" in printed


def test_a_packed_file_can_be_checked_without_naming_its_kind(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = root.parent / "scenes.h5"
    assert main(["data", "pack", str(root), str(file)]) == 0
    printed = capsys.readouterr().out
    assert "--data.kind packed" in printed and "2 images, fingerprint" in printed
    assert main(["data", "check", str(file)]) == 0
    assert "nothing wrong" in capsys.readouterr().out


def test_only_the_splits_that_are_named_are_packed(root: Path) -> None:
    file = root.parent / "val.h5"
    assert main(["data", "pack", str(root), str(file), "--splits", "val"]) == 0
    with h5py.File(file) as data:
        assert list(data["split"]) == ["val"]


def test_a_bad_scene_stops_packing_with_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "masks" / "b.png").unlink()
    assert main(["data", "pack", str(root), str(root.parent / "x.h5")]) == 2
    assert "masks/b.png does not exist; add it or take its id out" in capsys.readouterr().err
    assert not list(root.parent.glob("*x.h5*"))
