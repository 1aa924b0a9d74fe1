from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from kappaseg_core.ranking import IGNORE
from kappaseg_core.seeding import seeded
from kappaseg_core.structures import Scene
from stage1_multilabel.augment import EvalImages, RandomCrop, TrainExamples, geometry
from stage1_multilabel.config import AugmentConfig
from tests.blobs import Blobs

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
PLAIN = AugmentConfig(image_size=8, crop=1.0, flip=0.0, randaugment_ops=0, cutout=0.0)
LEFT, RIGHT = 51, 204  # 0.2 and 0.8


class Halves:
    """One scene, 9 x 14: label 3 dark on the left, label 1 bright on the right. No pixel is unlabelled."""

    class_names, image_ids, split = tuple("abcde"), ("halves",), "train"

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Scene:
        mask = np.full((9, 14), 3, np.int32)
        mask[:, 7:] = 1
        return Scene(np.where(mask == 3, LEFT, RIGHT).astype(np.uint8)[None].repeat(3, 0), mask, "halves")


class Unlabelled(Halves):
    """The same with the right half unlabelled."""

    def __getitem__(self, index: int) -> Scene:
        scene = super().__getitem__(index)
        return replace(scene, mask=np.where(scene.mask == 1, IGNORE, scene.mask).astype(np.int32))


def views(augment: AugmentConfig, seeds: range, scenes: Any = None) -> list[tuple[Tensor, list[int]]]:
    examples = TrainExamples(scenes or Halves(), augment, MEAN, STD)
    made = [examples.make(0, seed) for seed in seeds]
    return [(view.normalised(), np.flatnonzero(labels).tolist()) for view, labels, _ in made]


def test_without_augmentation_the_whole_image_is_resized() -> None:
    examples = TrainExamples(Halves(), PLAIN, MEAN, STD)
    view, labels, image_id = examples.make(0, 0)
    image = view.normalised()
    assert len(examples) == 1 and image_id == "halves"
    assert type(image) is Tensor and image.shape == (3, 8, 8) and image.dtype == torch.float32
    assert labels.tolist() == [0, 1, 0, 1, 0] and labels.dtype == np.uint8
    torch.testing.assert_close(image[:, :, 0], torch.full((3, 8), LEFT / 255))
    torch.testing.assert_close(image[:, :, -1], torch.full((3, 8), RIGHT / 255))


def test_unlabelled_pixels_are_no_label() -> None:
    assert views(PLAIN, range(1), Unlabelled())[0][1] == [3]


def test_a_crop_has_the_labels_of_the_crop() -> None:
    found = views(replace(PLAIN, crop=0.2), range(60))
    for image, labels in found:
        dark, bright = float(image.min()), float(image.max())
        if labels == [3]:
            assert dark == bright == pytest.approx(LEFT / 255)
        elif labels == [1]:
            assert dark == bright == pytest.approx(RIGHT / 255)
        else:
            assert labels == [1, 3] and dark < bright
    assert {tuple(labels) for _, labels in found} == {(1,), (3,), (1, 3)}


def test_a_crop_of_unlabelled_pixels_has_no_labels() -> None:
    assert {tuple(labels) for _, labels in views(replace(PLAIN, crop=0.2), range(60), Unlabelled())} == {(), (3,)}


def test_a_flip_turns_image_and_labels_together() -> None:
    (straight, labels), (turned, after) = views(PLAIN, range(1))[0], views(replace(PLAIN, flip=1.0), range(1))[0]
    torch.testing.assert_close(turned, straight.flip(2))
    assert labels == after


@pytest.mark.parametrize("smallest", [0.3, 0.9])
def test_crops_keep_the_aspect_ratio_and_stay_inside(smallest: float) -> None:
    image, crop, shares = tv_tensors.Image(torch.zeros(3, 40, 100, dtype=torch.uint8)), RandomCrop(smallest), []
    for seed in range(50):
        torch.manual_seed(seed)
        place = crop.make_params([image])
        height, width = place["height"], place["width"]
        assert abs(height / 40 - width / 100) <= 0.5 / 40 + 0.5 / 100
        assert 0 <= place["top"] <= 40 - height and 0 <= place["left"] <= 100 - width
        shares.append(width / 100)
    assert min(shares) >= smallest - 0.005 and max(shares) <= 1
    assert min(shares) < smallest + 0.2 * (1 - smallest) and max(shares) > 1 - 0.2 * (1 - smallest)


def test_a_crop_of_a_tiny_image_is_at_least_one_pixel() -> None:
    crop = RandomCrop(0.1)
    for seed in range(10):
        torch.manual_seed(seed)
        place = crop.make_params([tv_tensors.Image(torch.zeros(3, 1, 2, dtype=torch.uint8))])
        assert place["height"] == 1 and place["width"] in (1, 2)


def test_cutout_is_one_square_hole_of_the_mean() -> None:
    augment = replace(PLAIN, image_size=16, cutout=1.0)
    for image, labels in views(augment, range(20)):
        hole = (image == 0).all(0)
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert hole.sum() == len(rows) * len(columns) and len(rows) == len(columns)
        assert 0.01 * 256 <= hole.sum() <= 0.27 * 256
        assert labels == [1, 3]


def test_a_view_depends_on_its_seed_alone() -> None:
    augment = AugmentConfig(image_size=8, crop=0.5, flip=0.5, randaugment_ops=2, cutout=0.5)
    examples = TrainExamples(Halves(), augment, MEAN, STD)
    first = [examples.make(0, seed)[0].normalised() for seed in range(12)]
    torch.manual_seed(99)
    torch.rand(3)
    state = torch.get_rng_state()
    again = [examples.make(0, seed)[0].normalised() for seed in reversed(range(12))][::-1]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({image.numpy().tobytes() for image in first}) > 6
    assert torch.equal(torch.get_rng_state(), state)
    assert all(image.isfinite().all() and image.shape == (3, 8, 8) for image in first)


def test_images_to_rank_are_resized_and_normalised() -> None:
    look = EvalImages(6, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    image = look(np.full((3, 5, 9), 102, np.uint8))
    expected = torch.tensor([-0.5, 0.0, 0.25]).view(3, 1, 1).expand(3, 6, 6)
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((3, 32, 32), np.uint8)
    stripes[:, :, ::2] = 254
    image = EvalImages(4, MEAN, STD)(stripes)
    torch.testing.assert_close(image, torch.full((3, 4, 4), 127 / 255), rtol=0, atol=0.02)


def test_an_image_is_trained_on_as_it_is_ranked() -> None:
    scene = Halves()[0]
    assert torch.equal(views(PLAIN, range(1))[0][0], EvalImages(8, MEAN, STD)(scene.image))


def plainly(augment: AugmentConfig) -> v2.Transform:
    """What follows the crop, on torchvision alone: normalising comes before the hole is cut."""
    steps = [v2.Resize((augment.image_size,) * 2, antialias=True)]
    steps += [v2.RandAugment(augment.randaugment_ops, augment.randaugment_magnitude)]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])]
    return v2.Compose([*steps, v2.RandomErasing(augment.cutout, scale=(0.02, 0.25), ratio=(1.0, 1.0))])


@pytest.mark.parametrize("crop", [1.0, 0.4])
def test_a_view_is_the_one_of_torchvision_bit_for_bit(crop: float) -> None:
    augment, scenes = AugmentConfig(image_size=24, crop=crop, flip=0.5), Blobs()
    examples, cut = TrainExamples(scenes, augment, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), geometry(augment)
    assert cut is not None
    for seed in range(30):
        scene = scenes[seed % 3]
        view, labels, _ = examples.make(seed % 3, seed)
        image, mask = tv_tensors.Image(torch.from_numpy(scene.image)), tv_tensors.Mask(torch.from_numpy(scene.mask))
        with seeded(seed):
            cropped, mask = cut(image, mask)
            image = plainly(augment)(cropped)
        assert torch.equal(view.normalised(), image.as_subclass(Tensor))
        assert np.flatnonzero(labels).tolist() == sorted({int(label) for label in mask.unique()} - {IGNORE})
