"""Instance maps: in folders, packed files and synthetic scenes, and what a check finds in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from kappaseg_core.config import DataConfig
from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes import open_scenes, things_of
from kappaseg_core.scenes.check import check_scenes
from kappaseg_core.scenes.packing import pack
from kappaseg_core.scenes.subset import Subset
from kappaseg_core.scenes.synthetic import Options, SyntheticScenes
from kappaseg_core.segments import CROWD, segments_of
from kappaseg_core.structures import SceneSet

if TYPE_CHECKING:
    from .conftest import DataFolder

# sky tree road car person: the last two are things
MASK = np.array([[0, 0, 3, 3, 3], [1, 4, 4, 3, 255], [1, 4, 3, 3, 255]], np.uint8)
INSTANCES = np.array([[0, 0, 1, 1, 2], [0, 7, 7, 1, 0], [0, 65535, 0, 2, 0]], np.uint16)
SIZE = MASK.shape


@pytest.fixture
def cars(folder: DataFolder) -> DataFolder:
    """Scene x of train, with two cars, a person, a crowd, and a pixel of a car in no object; y of val with nothing."""
    (folder.root / "instances").mkdir()
    (folder.root / "things.txt").write_text("person\ncar\n")
    for name, mask, instances in (("x", MASK, INSTANCES), ("y", MASK % 2, np.zeros(SIZE, np.uint8))):
        folder.write_photo(f"{name}.png", np.random.default_rng(len(name)).integers(0, 255, (*SIZE, 3), np.uint8))
        folder.write_mask(name, mask)
        write(folder, name, instances)
    folder.write_split("train", ["x"])
    folder.write_split("val", ["y"])
    return folder


def write(folder: DataFolder, image_id: str, instances: np.ndarray) -> None:
    Image.fromarray(instances).save(folder.root / "instances" / f"{image_id}.png")


def opened(folder: DataFolder, split: str = "train") -> SceneSet:
    return folder.open(split, instances="instances")


def line(folder: DataFolder) -> str:
    with pytest.raises(UserError) as error:
        opened(folder)[0]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_gives_numbers_and_crowds_and_says_which_labels_are_things(cars: DataFolder) -> None:
    scenes = opened(cars)
    instances = scenes[0].instances
    assert instances is not None and instances.dtype == np.int32
    assert instances.tolist() == np.where(INSTANCES == 65535, CROWD, INSTANCES.astype(int)).tolist()
    assert things_of(scenes) == things_of(Subset(scenes, [0])) == (False, False, False, True, True)
    found = segments_of(*map(torch.from_numpy, (scenes[0].mask, instances)), torch.tensor(things_of(scenes)))
    assert found.labels.tolist() == [0, 1, 3, 3, 4, 4] and found.areas().tolist() == [2, 2, 3, 2, 1, 2]


def test_maps_of_all_segments_are_read_without_the_numbers_of_stuff(cars: DataFolder, tmp_path: Path) -> None:
    """Of the pixels without a label likewise. The list of things may lie elsewhere."""
    things = tmp_path / "elsewhere.txt"
    (cars.root / "things.txt").rename(things)
    write(cars, "x", np.where(INSTANCES == 0, np.uint16(9), INSTANCES))
    scene = cars.open("train", instances="instances", numbers="segments", things=str(things))[0]
    wanted = np.where(INSTANCES == 65535, CROWD, INSTANCES.astype(int))
    wanted[2, 2] = 9  # a car's pixel: its number is that of an object
    assert scene.instances is not None and scene.instances.tolist() == wanted.tolist()


def test_a_folder_that_is_not_asked_for_them_reads_no_instance_map(cars: DataFolder) -> None:
    (cars.root / "things.txt").unlink()
    scenes = cars.open()
    assert scenes[0].instances is None
    with pytest.raises(UserError, match="has label maps and no instance maps"):
        things_of(scenes)


def test_a_packed_file_gives_what_its_folder_gives_where_it_is_asked(cars: DataFolder, tmp_path: Path) -> None:
    pack([opened(cars), opened(cars, "val")], tmp_path / "x.h5")
    for split in ("train", "val"):
        plain, scenes = (
            open_scenes(DataConfig(kind="packed", root=str(tmp_path / "x.h5"), options=options), split)
            for options in ({}, {"instances": True})
        )
        wanted, found = opened(cars, split)[0], pickle.loads(pickle.dumps(scenes))[0]
        assert np.array_equal(found.instances, wanted.instances) and found.instances.dtype == np.int32
        assert np.array_equal(found.mask, wanted.mask) and np.array_equal(plain[0].mask, wanted.mask)
        assert plain[0].instances is None and things_of(scenes) == things_of(opened(cars))


def test_any_hdf5_reader_can_read_the_instance_maps(cars: DataFolder, tmp_path: Path) -> None:
    """The recipe in packed.py."""
    pack([opened(cars)], tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        height, width = file["mask_shape"][0]
        assert file["instances"][0, : height * width].reshape(height, width).tolist() == INSTANCES.tolist()
        assert file["thing"][:].tolist() == [0, 0, 0, 1, 1]


def test_a_packed_file_without_instance_maps_says_so(cars: DataFolder, tmp_path: Path) -> None:
    pack([cars.open()], tmp_path / "x.h5")
    data = DataConfig(kind="packed", root=str(tmp_path / "x.h5"), options={"instances": True})
    with pytest.raises(UserError, match="was packed without instance maps"):
        open_scenes(data, "train")


def test_a_flipped_byte_of_an_instance_map_is_found(cars: DataFolder, tmp_path: Path) -> None:
    pack([opened(cars)], tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        place = file["instances"].id.get_chunk_info(0).byte_offset
    data = bytearray((tmp_path / "x.h5").read_bytes())
    data[place + 9] ^= 4
    (tmp_path / "x.h5").write_bytes(data)
    scenes = open_scenes(DataConfig(kind="packed", root=str(tmp_path / "x.h5"), options={"instances": True}), "train")
    with pytest.raises(UserError, match=r"instances of sample x in .* is damaged"):
        scenes[0]


def test_a_missing_instance_map_is_named(cars: DataFolder) -> None:
    (cars.root / "instances" / "x.png").unlink()
    assert "instances/x.png does not exist; add it" in line(cars)


def test_a_folder_of_instance_maps_that_is_not_there_is_one_line_and_not_one_per_image(cars: DataFolder) -> None:
    with pytest.raises(UserError, match=r"data.options.instances = 'objects': .*/objects is no folder; name that"):
        cars.open(instances="objects")


def test_an_instance_map_of_another_size_is_refused(cars: DataFolder) -> None:
    write(cars, "x", INSTANCES[:2])
    assert "instances/x.png is 2x5 (height x width), its mask is 3x5" in line(cars)


@pytest.mark.parametrize(("place", "words"), [((0, 0), "'sky', which is stuff"), ((1, 4), "pixels without a label")])
def test_an_object_where_there_is_no_thing_is_refused(cars: DataFolder, place: tuple[int, int], words: str) -> None:
    wrong = INSTANCES.copy()
    wrong[place] = 3
    write(cars, "x", wrong)
    assert f"has an object on {words} (1 such pixels), wanted 0 there" in line(cars)


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "things.txt does not exist"), ("\n", "is empty"), ("car\nbus\n", "has 'bus', which is no class")],
)
def test_a_list_of_things_that_is_none_is_refused(cars: DataFolder, text: str | None, words: str) -> None:
    (cars.root / "things.txt").unlink()
    if text is not None:
        (cars.root / "things.txt").write_text(text)
    assert words in line(cars)


def test_a_check_counts_objects_crowds_and_pixels_of_things_in_no_object(cars: DataFolder) -> None:
    found = check_scenes(cars.config(instances="instances"))
    train, val = (split.objects for split in found.splits)
    assert train is not None and val is not None and not found.flaws
    assert (train.per_image.tolist(), train.crowds, train.outside_share) == ([3], 1, pytest.approx(1 / 9))
    assert (val.per_image.tolist(), val.crowds, val.outside_share) == ([0], 0, 0)
    assert (
        "split train: 11.11 % of the pixels of things are in no object, and void in the panoptic truth" in found.notes
    )
    assert all(split.objects is None for split in check_scenes(cars.config()).splits)


def test_a_check_finds_an_object_on_two_labels(cars: DataFolder) -> None:
    write(cars, "x", np.where(INSTANCES == 7, 2, INSTANCES).astype(np.uint16))
    (lines,) = check_scenes(cars.config(instances="instances")).flaws.values()
    assert "image x: object 2 lies on car and person" in lines[0]


def test_a_check_names_image_mask_and_instance_map_apart(cars: DataFolder) -> None:
    (cars.root / "instances" / "x.png").write_bytes(b"\x89PNG")
    (cars.root / "masks" / "x.png").unlink()
    flaws = check_scenes(cars.config(instances="instances"), ["train"]).flaws
    assert sorted(flaws) == ["image without a mask", "unreadable file"]


# Synthetic scenes


def test_synthetic_things_are_objects_and_the_rest_is_stuff() -> None:
    scenes = SyntheticScenes("train", Options(classes=12, train=8, size=48, objects=3))
    most = 0
    for index in range(8):
        scene = scenes[index]
        assert scene.instances is not None and scene.instances.dtype == np.int32
        thing = (scene.mask != IGNORE) & np.array(things_of(scenes))[scene.mask]
        assert np.array_equal(scene.instances > 0, thing) and scene.instances.min() >= 0
        objects = {label: set(scene.instances[scene.mask == label]) for label in set(scene.mask[thing])}
        assert all(len(numbers) <= 3 for numbers in objects.values())
        assert sum(map(len, objects.values())) == len(set(scene.instances[thing]))  # no number on two labels
        most = max([most, *map(len, objects.values())])
    assert most == 3
    assert not check_scenes(DataConfig(kind="synthetic", options={"train": 3, "val": 3, "objects": 2})).flaws


def test_scenes_without_objects_are_those_that_they_were() -> None:
    before, now = (SyntheticScenes("train", Options(classes=12, train=2, **more)) for more in ({}, {"objects": 2}))
    assert before[0].instances is None and before.things is None
    assert before.fingerprint() != now.fingerprint()
    assert before.fingerprint() == SyntheticScenes("train", Options(classes=12, train=2, objects=None)).fingerprint()
