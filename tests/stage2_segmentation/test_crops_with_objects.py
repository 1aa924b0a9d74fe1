"""Training crops with objects: label map and instance map stay together, from the data set to the batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kappaseg_core.backbones import build_backbone
from kappaseg_core.config import BackboneConfig, DataConfig, LoopConfig
from kappaseg_core.feeding import batches
from kappaseg_core.placement import Placement
from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes import open_scenes
from kappaseg_core.scenes.packing import pack
from kappaseg_core.scenes.synthetic import Options, SyntheticScenes
from kappaseg_core.segments import CROWD, VOID, segments_of
from kappaseg_core.structures import Scene, SceneSet
from kappaseg_core.views import training_bank
from stage2_segmentation.augment import TrainExamples
from stage2_segmentation.config import AugmentConfig
from tests.blobs import Blobs

AUGMENT = AugmentConfig(short_side=40, scale=(0.5, 2.0), crop=33, max_share=0.75, flip=0.5, photometric=True)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SCENES = SyntheticScenes("train", Options(classes=9, train=4, size=48, objects=3))


class Numbered(Blobs):
    """Blobs whose object in row y and column x has the number 100 y + x + 1; of label 3 nobody told objects apart."""

    class_names = tuple(map(str, range(90 * 100)))  # pixels are labels too: 100 y + x

    def __getitem__(self, index: int) -> Scene:
        scene = super().__getitem__(index)
        y, x = np.mgrid[: scene.mask.shape[0], : scene.mask.shape[1]]
        places = (100 * y + x).astype(np.int32)
        numbers = np.where(places % 7 == 3, CROWD, places + 1)
        return replace(scene, mask=np.where(scene.mask == IGNORE, IGNORE, places), instances=numbers)


def crops(scenes: SceneSet, augment: AugmentConfig = AUGMENT) -> TrainExamples:
    return TrainExamples(scenes, augment, ZERO, ONE, target="objects")


@pytest.mark.parametrize("crop", [20, 56, 150])
def test_a_crop_with_objects_is_the_one_without_bit_for_bit_and_a_pixel_keeps_its_object(crop: int) -> None:
    """Crops inside the image, wider or higher than it, and around it; ids far above 255, and crowds."""
    augment, scenes = replace(AUGMENT, crop=crop, max_share=0.5), Numbered()
    for seed in range(20):
        view, mask, image_id = TrainExamples(scenes, augment, ZERO, ONE).make(seed % 3, seed)
        other, target, other_id = crops(scenes, augment).make(seed % 3, seed)
        assert other.pixels.equal(view.pixels) and (other.blank, other_id) == (view.blank, image_id)
        assert target.dtype == np.int32 and target.shape == (2, crop, crop)
        assert np.array_equal(target[0], mask)
        numbers = np.where(mask % 7 == 3, CROWD, mask + 1)
        assert np.array_equal(target[1][mask != IGNORE], numbers[mask != IGNORE])


def test_padding_is_in_no_object_and_void() -> None:
    labels, numbers = torch.from_numpy(crops(SCENES, replace(AUGMENT, scale=(0.5, 0.5))).make(0, 0)[1])
    assert (labels[20:] == IGNORE).all() and (numbers[20:] == 0).all()
    segments = segments_of(labels, numbers, torch.tensor(SCENES.things))
    assert (segments.map[20:] == VOID).all() and not segments.crowd.any()


def test_every_object_of_a_mirrored_scene_is_the_one_it_was() -> None:
    whole = replace(AUGMENT, short_side=48, scale=(1.0, 1.0), crop=48, max_share=1.0, photometric=False)
    several = 0
    for index in range(len(SCENES)):
        one, other = (
            segments_of(*torch.from_numpy(crops(SCENES, replace(whole, flip=flip)).make(index, 0)[1]),
                        torch.tensor(SCENES.things))
            for flip in (0.0, 1.0)
        )  # fmt: skip
        assert other.map.equal(one.map.flip(1)) and other.labels.equal(one.labels)
        several += len(one) > len(one.labels.unique())
    assert several  # objects of one thing


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_both_maps_and_those_without_objects_have_the_same_images(workers: int) -> None:
    loop = LoopConfig(steps=2, batch_size=2, loader_workers=workers)
    plain = batches(TrainExamples(SCENES, AUGMENT, ZERO, ONE), "mask", loop, Placement())
    for one, other in zip(batches(crops(SCENES), "objects", loop, Placement()), plain, strict=True):
        assert one.image is not None and one.mask is not None and other.image is not None and other.mask is not None
        assert one.image.equal(other.image) and one.mask.equal(other.mask) and one.image_id == other.image_id
        assert one.instances is not None and one.instances.dtype == torch.int64 and other.instances is None
        things = torch.tensor(SCENES.things)[one.mask.clamp(min=0)] & (one.mask != IGNORE)
        assert ((one.instances > 0) == things).all()


@dataclass(frozen=True)
class Config:
    """What a bank of views asks of a training configuration."""

    out: str
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(cached_views=2))
    augment: AugmentConfig = AUGMENT
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(kind="small_cnn", name="4", frozen=True))
    init: str | None = None


def test_stored_views_hold_both_maps_and_are_not_those_without_objects(tmp_path: Path) -> None:
    config = Config(str(tmp_path))
    backbone, here = build_backbone(config.backbone, image_size=33), Placement()
    bank = training_bank(config, "objects", crops(SCENES), SCENES, backbone, here)
    target = bank.make(1, 0)[1]
    assert target.shape == (2, 33, 33) and (target[1] > 0).any()
    plain = training_bank(config, "mask", TrainExamples(SCENES, AUGMENT, ZERO, ONE), SCENES, backbone, here)
    assert plain.folder != bank.folder and plain.make(1, 0)[1].equal(target[0].short())


def test_a_folder_and_its_packed_file_give_the_same_crops(tmp_path: Path) -> None:
    root, packed = tmp_path / "data", tmp_path / "data.h5"
    for name in ("images", "masks", "instances", "splits"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in SCENES.class_names))
    things = (name for name, thing in zip(SCENES.class_names, SCENES.things or (), strict=True) if thing)
    (root / "things.txt").write_text("".join(f"{name}\n" for name in things))
    (root / "splits" / "train.txt").write_text("".join(f"{name}\n" for name in SCENES.image_ids))
    for index, name in enumerate(SCENES.image_ids):
        scene = SCENES[index]
        assert scene.instances is not None
        crowd = np.where(scene.mask == scene.mask.max(), 65535, scene.instances) * (scene.instances > 0)
        Image.fromarray(scene.image.transpose(1, 2, 0)).save(root / "images" / f"{name}.png")
        Image.fromarray(np.where(scene.mask == IGNORE, 255, scene.mask).astype(np.uint8)).save(
            root / "masks" / f"{name}.png"
        )
        Image.fromarray(crowd.astype(np.uint16)).save(root / "instances" / f"{name}.png")
    folder = open_scenes(DataConfig("folder", str(root), options={"instances": "instances"}), "train")
    pack([folder], packed)
    same = open_scenes(DataConfig("packed", str(packed), options={"instances": True}), "train")
    crowds = 0
    for index in range(len(SCENES)):
        one, other = (crops(scenes).make(index, index) for scenes in (folder, same))
        assert one[0].pixels.equal(other[0].pixels) and np.array_equal(one[1], other[1])
        crowds += int((one[1][1] == CROWD).any())
    assert crowds
