"""A packed file holds what its folder holds, is whole or not there, and says so when it is damaged."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from torch.utils.data import DataLoader

from kappaseg_core.config import DataConfig
from kappaseg_core.errors import UserError
from kappaseg_core.scenes import open_scenes
from kappaseg_core.scenes.packed import PackedScenes
from kappaseg_core.scenes.packing import pack
from kappaseg_core.structures import Scene, SceneSet

if TYPE_CHECKING:
    from .conftest import DataFolder

# Python 3.12 and later warn about every fork of a process with threads, and torch has threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def packed(folder: DataFolder, destination: Path, **options: object) -> Path:
    pack([folder.open("train", **options), folder.open("val", **options)], destination)
    return destination


def open_packed(path: Path, split: str = "train") -> PackedScenes:
    scenes = open_scenes(DataConfig(kind="packed", root=str(path)), split)
    assert isinstance(scenes, PackedScenes)
    return scenes


@pytest.fixture
def file(filled: DataFolder, tmp_path: Path) -> Path:
    """`filled` packed: train c a b, val é d."""
    return packed(filled, tmp_path / "scenes.h5")


def assert_same(one: Scene, other: Scene) -> None:
    assert one.image_id == other.image_id
    assert (one.image.dtype, one.mask.dtype) == (other.image.dtype, other.mask.dtype)
    assert np.array_equal(one.image, other.image)
    assert np.array_equal(one.mask, other.mask)


# The same data


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_scene_is_that_of_the_folder(filled: DataFolder, file: Path, split: str) -> None:
    folder, scenes = filled.open(split), open_packed(file, split)
    assert scenes.class_names == folder.class_names
    assert scenes.image_ids == folder.image_ids
    for index in range(-len(folder), len(folder)):
        assert_same(scenes[index], folder[index])
        assert np.array_equal(scenes.image(index), folder.image(index))


@pytest.mark.parametrize("num_classes", [254, 255, 256, 300])
def test_255_classes_and_more_keep_their_ids(folder: DataFolder, tmp_path: Path, num_classes: int) -> None:
    """Above 254 the stored ignore value moves out of the byte."""
    folder.write_classes([f"class {label}" for label in range(num_classes)])
    folder.write_photo("x.png", np.zeros((5, 7, 3), np.uint8))
    mask = np.zeros((5, 7), np.uint16)
    mask[0], mask[1, :3] = num_classes - 1, 65535
    folder.write_mask("x", mask)
    folder.write_split("train", ["x"])
    pack([folder.open(ignore=65535)], tmp_path / "x.h5")
    found = open_packed(tmp_path / "x.h5")[0].mask
    assert found[0].tolist() == [num_classes - 1] * 7
    assert found[1].tolist() == [-1] * 3 + [0] * 4


def test_the_id_map_and_ignore_value_are_applied_once_and_for_all(filled: DataFolder, tmp_path: Path) -> None:
    options = {"ignore": 3, "id_map": {0: 4, 1: 0, 2: 1, 4: 2, 255: -1}}
    path = packed(filled, tmp_path / "mapped.h5", **options)
    for split in ("train", "val"):
        for index, scene in enumerate(map(filled.open(split, **options).__getitem__, range(2))):
            assert_same(open_packed(path, split)[index], scene)


def test_photos_are_stored_byte_for_byte(filled: DataFolder, file: Path) -> None:
    folder, scenes = filled.open(), open_packed(file)
    for index in range(len(folder)):
        assert scenes.image_bytes(index) == folder.image_path(index).read_bytes()


@pytest.mark.parametrize("split", ["train", "val"])
def test_folder_and_packed_file_share_their_fingerprint(filled: DataFolder, file: Path, split: str) -> None:
    assert open_packed(file, split).fingerprint() == filled.open(split).fingerprint()


def test_any_hdf5_reader_can_read_the_file(filled: DataFolder, file: Path) -> None:
    """The recipe in packed.py."""
    folder = filled.open()
    with h5py.File(file) as data:
        for index, row in enumerate(data["split/train"]):
            assert data["image_id"][row].decode() == folder.image_ids[index]
            assert data["image"][row, : data["image_size"][row]].tobytes() == folder.image_bytes(index)
            height, width = data["mask_shape"][row]
            mask = data["mask"][row, : height * width].reshape(height, width).astype(np.int32)
            mask[mask == data.attrs["ignore"]] = -1
            assert np.array_equal(mask, folder[index].mask)


def test_one_sample_is_one_chunk(file: Path) -> None:
    with h5py.File(file) as data:
        for name in ("image", "mask"):
            assert data[name].chunks == (1, data[name].shape[1])
            assert data[name].id.get_num_chunks() == 5


def test_an_image_in_two_splits_is_stored_once(filled: DataFolder, tmp_path: Path) -> None:
    filled.write_split("val", ["a", "d"])
    path = packed(filled, tmp_path / "shared.h5")
    with h5py.File(path) as data:
        assert len(data["image"]) == 4
    assert_same(open_packed(path, "val")[0], filled.open()[1])


# Processes


def loaded(scenes: SceneSet, start: str) -> list[Scene]:
    workers = 2 if start == "fork" else 1  # a spawned one imports torch anew, for seconds
    loader = DataLoader(scenes, batch_size=None, num_workers=workers, multiprocessing_context=start)  # type: ignore
    return list(loader)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loader_workers_read_the_same_scenes(filled: DataFolder, file: Path, start: str) -> None:
    """Also with handles open in the parent, on both splits of one file."""
    sets = {split: open_packed(file, split) for split in ("train", "val")}
    for scenes in sets.values():
        scenes[0]
    for split, scenes in sets.items():
        folder = filled.open(split)
        found = loaded(scenes, start)
        assert len(found) == len(folder)
        for index, scene in enumerate(found):
            assert_same(scene, folder[index])
        assert_same(scenes[1], folder[1])  # the parent's handle still works


def test_a_pickled_set_carries_no_handle_and_reads_the_same(file: Path) -> None:
    scenes = open_packed(file)
    first = scenes[0]
    assert_same(pickle.loads(pickle.dumps(scenes))[0], first)


# Writing


def in_child(work: Callable[[], object]) -> int | None:
    """Exit status of `work` in a forked process, negative for the signal that ended it."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


def test_packing_after_a_kill_gives_the_same_bytes(filled: DataFolder, file: Path, tmp_path: Path) -> None:
    sets, again = [filled.open("train"), filled.open("val")], tmp_path / "again" / "scenes.h5"
    again.parent.mkdir()

    def die(done: int, total: int) -> None:
        assert total == 5
        if done == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lambda: pack(sets, again, progress=die)) == -signal.SIGKILL
    assert not again.exists()
    assert [path.name for path in again.parent.iterdir()] == [".scenes.h5.tmp"]
    time.sleep(1.1)  # a time stamp would now differ
    pack(sets, again)
    assert again.read_bytes() == file.read_bytes()
    assert list(again.parent.iterdir()) == [again]


def test_a_bad_scene_leaves_the_older_file_in_place(filled: DataFolder, file: Path) -> None:
    before = file.read_bytes()
    filled.write_mask("d", np.full((8, 6), 77, np.uint8))
    with pytest.raises(UserError, match=r"d\.png holds value 77"):
        packed(filled, file)
    assert file.read_bytes() == before
    assert list(file.parent.glob("*.tmp")) + list(file.parent.glob(".*")) == []


def test_a_file_that_cannot_grow_is_one_line(filled: DataFolder, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk."""
    destination, said = tmp_path / "scenes.h5", tmp_path / "said.txt"

    def work() -> None:
        sets = [filled.open("train")]
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            pack(sets, destination)
        except UserError as error:
            said.write_text(str(error))

    assert in_child(work) == 0
    wanted = f"cannot write {destination}: file too large; free space or choose another --out or --to"
    assert said.read_text() == wanted
    assert not destination.exists()


def test_what_cannot_be_packed_is_refused(filled: DataFolder, file: Path, tmp_path: Path) -> None:
    train, val = filled.open("train"), filled.open("val")
    for sets, words in (
        ([], "pack got nothing, wanted splits of a folder"),
        ([open_packed(file)], "pack got PackedScenes, wanted splits of a folder"),
        ([train, filled.open("val", ignore=99)], "wanted one folder and one set of options"),
        ([train, val, train], "pack got splits train, val, train, wanted each one once"),
    ):
        with pytest.raises(UserError, match=words):
            pack(sets, tmp_path / "other.h5")
    with pytest.raises(UserError, match=r"folder .*none does not exist; make it first"):
        pack([train], tmp_path / "none" / "other.h5")


# Damage


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_damaged_sample_is_named_and_the_others_are_read(filled: DataFolder, file: Path, name: str) -> None:
    with h5py.File(file) as data:
        row = int(data["split/train"][1])
        flip(file, data[name].id.get_chunk_info(row).byte_offset + 20)
    scenes = open_packed(file)
    with pytest.raises(UserError, match=f"{name} of sample a in {file} is damaged.*copy it anew or pack it again"):
        scenes[1]
    assert_same(scenes[2], filled.open()[2])


def test_no_flipped_byte_is_read_as_a_scene(filled: DataFolder, file: Path, tmp_path: Path) -> None:
    """Every 97th byte of the file: either everything is as before, or an error says that it is not."""
    before = [filled.open()[index] for index in range(3)]
    found = {"damage": 0, "same": 0}
    for place in range(0, file.stat().st_size, 97):
        copy = tmp_path / "copy.h5"
        shutil.copyfile(file, copy)
        flip(copy, place)
        try:
            scenes = open_packed(copy)
            names, after = scenes.class_names, [scenes[index] for index in range(3)]
        except UserError as error:
            assert str(copy) in str(error)
            found["damage"] += 1
            continue
        assert names == filled.open().class_names
        for one, other in zip(after, before, strict=True):
            assert_same(one, other)
        found["same"] += 1
    assert min(found.values()) > 0


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(file: Path, share: float) -> None:
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(UserError, match=f"{file} is damaged, incomplete or no HDF5 file .*; copy it anew"):
        open_packed(file)


def test_files_of_others_and_other_versions_are_refused(file: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as data:
        data["image"] = np.zeros(3)
    with pytest.raises(UserError, match=r"other\.h5 was not made by `kappaseg data pack`, or not finished"):
        open_packed(tmp_path / "other.h5")
    with h5py.File(file, "a") as data:
        data.attrs["version"] = 99
    with pytest.raises(UserError, match="is packed in version 99, wanted 1; pack it again"):
        open_packed(file)


def test_a_missing_file_or_split_is_named(file: Path) -> None:
    with pytest.raises(UserError, match=r"none\.h5 does not exist; set data.root to a file made by"):
        open_packed(file.with_name("none.h5"))
    with pytest.raises(UserError, match=f"split 'test' is not in {file}; there are: train, val; choose one"):
        open_packed(file, "test")


def test_a_file_replaced_while_in_use_is_noticed(filled: DataFolder, file: Path) -> None:
    scenes = open_packed(file)
    filled.write_mask("a", np.zeros((5, 9), np.uint8))
    packed(filled, file)
    with pytest.raises(UserError, match=f"{file} was replaced by another packed file"):
        scenes[0]
