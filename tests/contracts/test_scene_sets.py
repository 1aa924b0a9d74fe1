"""What every kind of scene set promises (structures.SceneSet). A new kind is one more entry of MAKERS."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kappaseg_core.config import DataConfig
from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes import open_scenes, scene_kinds
from kappaseg_core.scenes.packing import pack
from kappaseg_core.structures import SceneSet
from tests.kappaseg_core.scenes import panoptic_miniature

K = 5


@dataclass(frozen=True)
class Kind:
    """A data set of one kind, and another one that differs from it in one picture (or in what draws it)."""

    data: DataConfig
    changed: DataConfig

    def open(self, split: str = "train") -> SceneSet:
        return open_scenes(self.data, split)


def make_folder(root: Path, seed: int) -> DataConfig:
    """train: 3 images, val: 2, of odd and different sizes; image 0 is drawn from `seed`."""
    for name in ("images", "masks", "splits"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"class {label}\n" for label in range(K)))
    for number in range(5):
        random = np.random.default_rng(number or 100 + seed)
        height, width = 5 + 2 * number, 11 - 2 * number
        picture = random.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(picture).save(root / "images" / f"{number}.{'png' if number % 2 else 'jpg'}")
        mask = random.integers(0, K, (height, width), np.uint8)
        mask[0, 0] = 255
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    (root / "splits" / "train.txt").write_text("2\n0\n1\n")
    (root / "splits" / "val.txt").write_text("4\n3\n")
    return DataConfig(kind="folder", root=str(root))


def folder(path: Path) -> Kind:
    return Kind(make_folder(path / "one", 0), make_folder(path / "other", 1))


def packed(path: Path) -> Kind:
    def pack_one(data: DataConfig, name: str) -> DataConfig:
        pack([open_scenes(data, "train"), open_scenes(data, "val")], path / name)
        return DataConfig(kind="packed", root=str(path / name))

    source = folder(path)
    return Kind(pack_one(source.data, "one.h5"), pack_one(source.changed, "other.h5"))


def synthetic(path: Path) -> Kind:
    data = DataConfig(kind="synthetic", options={"classes": K, "train": 3, "val": 2, "size": 33})
    return Kind(data, replace(data, options={**data.options, "seed": 1}))


def coco_panoptic(path: Path) -> Kind:
    """A thing, label 3, and stuff, label 0, and a void pixel; image 0 of the other set has another photograph."""

    def draw_one(root: Path) -> DataConfig:
        categories = [{"id": 10 + label, "name": f"class {label}", "isthing": label % 2} for label in range(K)]
        for split, numbers in (("train", (0, 1, 2)), ("val", (3, 4))):
            rows = {n: [[0, *[1] * (4 + n)], [2] * (5 + n)] for n in numbers}
            images = {f"{split}-{n}": (rows[n], [(1, 13, 0), (2, 10, 0)]) for n in numbers}
            photos, file = root / f"{split}2017", root / f"annotations/panoptic_{split}2017.json"
            panoptic_miniature.draw(file, images, photos=photos, categories=categories)
        return DataConfig(kind="coco_panoptic", root=str(root))

    one, other = draw_one(path / "one"), draw_one(path / "other")
    Image.new("RGB", (5, 2), "red").save(path / "other" / "train2017" / "train-0.jpg")
    return Kind(one, other)


MAKERS: dict[str, Callable[[Path], Kind]] = {
    "coco_panoptic": coco_panoptic,
    "folder": folder,
    "packed": packed,
    "synthetic": synthetic,
}


@pytest.fixture(params=sorted(MAKERS))
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    return MAKERS[request.param](tmp_path)


def test_every_kind_there_is_is_tested_here() -> None:
    assert sorted(MAKERS) == list(scene_kinds())


def test_images_are_bytes_in_rgb_and_masks_class_ids_of_the_same_size(kind: Kind) -> None:
    for split in ("train", "val"):
        scenes = kind.open(split)
        assert len(scenes.class_names) == K
        for index in range(len(scenes)):
            scene = scenes[index]
            channels, *size = scene.image.shape
            assert (scene.image.dtype, scene.mask.dtype) == (np.uint8, np.int32)
            assert channels == 3 and tuple(size) == scene.mask.shape
            assert scene.mask.min() >= IGNORE and scene.mask.max() < K
            assert scene.image.std() > 1  # it shows something


def test_ignored_pixels_are_minus_one(kind: Kind) -> None:
    assert (kind.open()[0].mask == IGNORE).any()


def test_instance_maps_are_there_where_a_set_has_things_and_lie_on_things_alone(
    kind: Kind,
) -> None:
    scenes = kind.open()
    things = getattr(scenes, "things", None)
    for index in range(len(scenes)):
        scene = scenes[index]
        assert (scene.instances is None) == (things is None)
        if scene.instances is not None:
            assert len(things) == K and scene.instances.dtype == np.int32 and scene.instances.shape == scene.mask.shape
            assert np.array(things)[scene.mask[scene.instances != 0]].all()
            assert (scene.mask[scene.instances != 0] != IGNORE).all()


def test_ids_are_unique_texts_and_those_of_the_scenes(kind: Kind) -> None:
    train, val = kind.open("train"), kind.open("val")
    ids = (*train.image_ids, *val.image_ids)
    assert len(set(ids)) == len(ids) == len(train) + len(val) == 5
    assert all(type(image_id) is str for image_id in ids)
    for scenes in (train, val):
        assert [scenes[index].image_id for index in range(len(scenes))] == list(scenes.image_ids)


def test_the_set_knows_its_split(kind: Kind) -> None:
    assert [kind.open(split).split for split in ("train", "val")] == ["train", "val"]


def test_an_image_alone_is_that_of_its_scene(kind: Kind) -> None:
    scenes = kind.open()
    for index in range(len(scenes)):
        assert np.array_equal(scenes.image(index), scenes[index].image)


def test_a_scene_does_not_depend_on_those_read_before(kind: Kind) -> None:
    forward, backward = kind.open(), kind.open()
    first = [forward[index] for index in range(3)]
    for index in (2, 1, 0, 0):
        again = backward[index]
        assert np.array_equal(again.image, first[index].image) and np.array_equal(again.mask, first[index].mask)


def test_what_a_scene_is_used_for_does_not_change_the_next_reading(kind: Kind) -> None:
    scenes = kind.open()
    before = scenes[0].image.copy()
    scene = scenes[0]
    if scene.image.flags.writeable:
        scene.image[:] = 0
    if scene.mask.flags.writeable:
        scene.mask[:] = 0
    assert np.array_equal(scenes[0].image, before)
    assert (scenes[0].mask == IGNORE).any()


def test_the_fingerprint_is_stable_and_tells_contents_and_splits_apart(kind: Kind) -> None:
    scenes = kind.open()
    first = scenes.fingerprint()
    assert len(first) == 64 and set(first) <= set("0123456789abcdef")
    assert scenes.fingerprint() == kind.open().fingerprint() == first
    assert open_scenes(kind.changed, "train").fingerprint() != first
    assert kind.open("val").fingerprint() != first


def test_a_pickled_set_gives_the_same_scenes_before_and_after_reading(kind: Kind) -> None:
    scenes = kind.open()
    fresh = pickle.loads(pickle.dumps(scenes))
    first = scenes[1]
    used = pickle.loads(pickle.dumps(scenes))
    for copy in (fresh, used):
        assert copy.image_ids == scenes.image_ids and copy.fingerprint() == scenes.fingerprint()
        assert np.array_equal(copy[1].image, first.image) and np.array_equal(copy[1].mask, first.mask)


def test_a_split_that_is_not_there_is_one_line_that_names_those_that_are(kind: Kind) -> None:
    with pytest.raises(UserError) as error:
        kind.open("test")
    assert all(word in str(error.value) for word in ("'test'", "train", "val")) and "\n" not in str(error.value)
