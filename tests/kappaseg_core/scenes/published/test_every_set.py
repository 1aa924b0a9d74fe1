"""What holds of every published set, on a miniature in its exact layout. A new set is a new module of `miniatures`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kappaseg_core.config import DataConfig
from kappaseg_core.scenes import open_scenes
from kappaseg_core.scenes.published import names_sha256, published_set
from kappaseg_core.structures import SceneSet
from pipelines.cli import main
from tests.kappaseg_core.scenes.published.conftest import SetSizes
from tests.kappaseg_core.scenes.published.miniature import Miniature, draw_photo


def options(to: Path) -> dict[str, int | str]:
    """What has to be said of a prepared folder: 16-bit masks have another ignore value, and some have instance maps."""
    record = json.loads((to / "prepared.json").read_text())
    ignore = {} if record["ignore"] == 255 else {"ignore": record["ignore"]}
    return ignore | ({"instances": "instances"} if "things" in record else {})


def flags(to: Path) -> list[str]:
    return [word for name, value in options(to).items() for word in (f"--data.options.{name}", str(value))]


def opened(to: Path, split: str) -> SceneSet:
    return open_scenes(DataConfig(root=str(to), options=options(to)), split)


def maps(scenes: SceneSet) -> dict[str, list[list[int]]]:
    return {scenes.image_ids[index]: scenes[index].mask.tolist() for index in range(len(scenes))}


def objects(scenes: SceneSet) -> dict[str, list[list[int]] | None]:
    """Image id → instance map; None where objects are not told apart."""
    found = ((image_id, scenes[index].instances) for index, image_id in enumerate(scenes.image_ids))
    return {image_id: None if instances is None else instances.tolist() for image_id, instances in found}


def problem(capsys: pytest.CaptureFixture[str], miniature: Miniature, to: Path) -> str:
    """The one line about the one flawed image."""
    capsys.readouterr()
    assert main(miniature.words(to)) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("kappaseg: 1 image could not be prepared; ")
    assert "Traceback" not in printed.err
    (line,) = printed.out.splitlines()
    return line


def test_masks_hold_the_ids_and_splits_the_images_that_were_worked_out_by_hand(
    prepared: tuple[Miniature, Path],
) -> None:
    miniature, to = prepared
    for split, expected in miniature.splits.items():
        scenes = opened(to, split)
        assert list(scenes.image_ids) == list(expected)
        assert maps(scenes) == {image_id: [list(row) for row in rows] for image_id, rows in expected.items()}
        assert {label: scenes.class_names[label] for label in miniature.names} == dict(miniature.names)


def test_instance_maps_hold_the_objects_that_were_worked_out_by_hand(prepared: tuple[Miniature, Path]) -> None:
    miniature, to = prepared
    told = miniature.instances
    for split, expected in miniature.splits.items():
        assert objects(opened(to, split)) == {i: None if told is None else told[split][i] for i in expected}
    assert (to / "instances").exists() == (to / "things.txt").exists() == (told is not None)


def test_photos_are_those_of_the_source(prepared: tuple[Miniature, Path]) -> None:
    miniature, to = prepared
    for image_id, photo in miniature.photos.items():
        assert (to / "images" / f"{image_id}{photo.suffix}").read_bytes() == photo.read_bytes()


def test_class_names_are_unique_and_those_published(prepared: tuple[Miniature, Path]) -> None:
    _, to = prepared
    names = (to / "classes.txt").read_text("utf-8").splitlines()
    record = json.loads((to / "prepared.json").read_text())
    assert len(set(names)) == len(names) == record["classes"]
    assert names_sha256(names) == record["classes_sha256"]


def test_masks_have_as_many_bits_as_the_classes_need(prepared: tuple[Miniature, Path]) -> None:
    _, to = prepared
    record = json.loads((to / "prepared.json").read_text())
    bits = 8 if record["classes"] <= 254 else 16
    assert record["ignore"] == 2**bits - 1
    for mask in (to / "masks").iterdir():
        assert mask.read_bytes()[24] == bits  # bits per sample, in the PNG's IHDR block


def test_the_folder_passes_the_check_and_packs_to_the_same_scenes(
    prepared: tuple[Miniature, Path], tmp_path: Path
) -> None:
    miniature, to = prepared
    file = tmp_path / "to.h5"
    assert main(["data", "check", str(to), *flags(to)]) == 0
    assert main(["data", "pack", str(to), str(file), *flags(to)]) == 0
    for split in miniature.splits:
        asked = {"instances": True} if miniature.instances else {}
        packed = open_scenes(DataConfig(kind="packed", root=str(file), options=asked), split)
        assert maps(packed) == maps(opened(to, split)) and objects(packed) == objects(opened(to, split))
        assert packed.class_names == opened(to, split).class_names


def test_a_set_says_what_it_is_and_what_to_download(prepared: tuple[Miniature, Path]) -> None:
    module = published_set(prepared[0].set)
    assert module.TITLE and module.DOWNLOAD and "\n" not in module.TITLE + module.DOWNLOAD


def test_a_source_that_lacks_images_is_refused_with_both_counts_unless_that_is_allowed(
    miniature: Miniature, set_sizes: SetSizes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to, wanted = tmp_path / "to", {split: count + 1000 for split, count in miniature.counts.items()}
    set_sizes(miniature, wanted)
    assert main(miniature.words(to)) == 2
    line = capsys.readouterr().err
    for split, count in miniature.counts.items():
        assert f"{split} {count} of {count + 1000:,} images" in line
    assert "--partial" in line and not to.exists()
    assert main(miniature.words(to, "--partial")) == 0
    record = json.loads((to / "prepared.json").read_text())
    assert not record["complete"] and record["finished"]
    assert record["splits"] == {
        split: {"images": count, "published": wanted[split]} for split, count in miniature.counts.items()
    }


def test_a_class_that_the_set_does_not_have_is_one_line_and_mending_it_is_all_that_is_left(
    miniature: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    texts = miniature.spoil()
    line = problem(capsys, miniature, to)
    assert all(text in line for text in texts)
    assert len(list((to / "masks").iterdir())) == sum(miniature.counts.values()) - 1
    assert not (to / "classes.txt").exists()


def test_a_missing_photo_is_one_line_and_mending_it_finishes_the_folder(
    miniature: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to, photo = tmp_path / "to", list(miniature.photos.values())[-1]
    data = photo.read_bytes()
    photo.unlink()
    assert f"image {photo} does not exist" in problem(capsys, miniature, to)
    photo.write_bytes(data)
    assert main(miniature.words(to)) == 0
    assert "1 images made now; complete" in capsys.readouterr().out


def test_a_photo_of_another_size_than_its_label_map_is_one_line(
    miniature: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_id, photo = next(iter(miniature.photos.items()))
    rows = next(maps[image_id] for maps in miniature.splits.values() if image_id in maps)
    draw_photo(photo, (len(rows) + 1, len(rows[0])))
    line = problem(capsys, miniature, tmp_path / "to")
    size = f"{len(rows) + 1}x{len(rows[0])} (height x width), its label map is {len(rows)}x{len(rows[0])}"
    assert str(photo) in line and size in line
