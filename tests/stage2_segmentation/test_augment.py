"""Training crops: image and mask stay together, the order of the steps, the rule on shares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.plain_feeding import in_whole_images
from kappaseg_core.ranking import IGNORE
from kappaseg_core.seeding import seed_of, seeded
from kappaseg_core.structures import Scene
from stage2_segmentation.augment import TRIES, TrainExamples, crop_box, scaled_size
from stage2_segmentation.config import AugmentConfig
from tests.blobs import Blobs

PLAIN = AugmentConfig(short_side=24, scale=(1.0, 1.0), crop=16, max_share=1.0, flip=0.0, photometric=False)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class Coordinates:
    """One scene of H x W whose pixel (y, x) has red 4 y, green 4 x, blue 255 and the label y·W + x."""

    split, image_ids = "train", ("map",)

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.class_names = tuple(map(str, range(height * width)))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Scene:
        y, x = np.mgrid[: self.height, : self.width]
        image = np.stack([4 * y, 4 * x, np.full_like(y, 255)]).astype(np.uint8)
        return Scene(image, (y * self.width + x).astype(np.int32), "map")

    def image(self, index: int) -> np.ndarray:
        return self[index].image

    def fingerprint(self) -> str:
        return "map"


def view(augment: AugmentConfig, seed: int, size: tuple[int, int] = (24, 40)) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns that the image says, each [S, S] (unscaled pixels), and the mask."""
    examples = TrainExamples(Coordinates(*size), augment, ZERO, ONE)
    made, mask, image_id = examples.make(0, seed)
    image = made.normalised()
    assert image_id == "map"
    assert (image.dtype, image.shape) == (torch.float32, (3, augment.crop, augment.crop))
    return image[0] * 255 / 4, image[1] * 255 / 4, torch.from_numpy(mask).long()


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_image_and_mask_are_cropped_and_mirrored_together(seed: int, flip: float) -> None:
    rows, columns, mask = view(replace(PLAIN, flip=flip), seed)
    assert torch.equal(rows.round().long() * 40 + columns.round().long(), mask)
    assert (columns.diff(dim=1) < 0).all() == bool(flip)
    assert (rows.diff(dim=0) > 0).all()


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.6, 2.0])
def test_image_and_mask_are_scaled_together(scale: float) -> None:
    """The mask takes the nearest pixel, the image mixes: half a pixel apart at most (the image is rounded to 1/4)."""
    rows, columns, mask = view(replace(PLAIN, scale=(scale, scale), crop=12), 3)
    found_rows, found_columns = mask // 40, mask % 40
    allowed = 0.5 + 0.125
    inner = slice(1, -1)  # anti-aliasing cuts its filter at the border
    assert (rows - found_rows)[inner, inner].abs().max() <= allowed
    assert (columns - found_columns)[inner, inner].abs().max() <= allowed
    assert rows.diff(dim=0)[inner].mean().item() == pytest.approx(1 / scale, rel=0.1)


def test_the_scale_covers_its_range() -> None:
    steps = [view(replace(PLAIN, scale=(0.5, 2.0), crop=8), seed)[0].diff(dim=0)[2:5].mean() for seed in range(30)]
    scales = 1 / torch.stack(steps)
    assert scales.min() < 0.7
    assert scales.max() > 1.7


def test_the_shorter_side_is_scaled_and_the_aspect_kept() -> None:
    assert scaled_size((30, 60), 20) == (20, 40)
    assert scaled_size((60, 31), 62, 0.5) == (60, 31)
    assert scaled_size((1000, 3), 1) == (333, 1)


def test_small_images_are_padded_right_and_below() -> None:
    """Ignored in the mask; the mean colour, which is 0, in the image."""
    examples = TrainExamples(Coordinates(24, 24), replace(PLAIN, crop=30), (0.5,) * 3, (0.25,) * 3)
    made, mask, _ = examples.make(0, 1)
    image = made.normalised()
    inside = torch.zeros(30, 30, dtype=torch.bool)
    inside[:24, :24] = True
    assert torch.equal(torch.from_numpy(mask) != IGNORE, inside)
    assert (image[:, ~inside] == 0).all()
    assert torch.allclose(image[2, inside], torch.tensor(2.0))  # (1 - 0.5) / 0.25


def test_the_same_seed_gives_the_same_view_and_leaves_the_random_state_alone() -> None:
    augment = AugmentConfig(short_side=24, crop=16)
    examples = TrainExamples(Coordinates(24, 40), augment, ZERO, ONE)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = examples.make(0, 7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = examples.make(0, 7), examples.make(0, 8)
    assert torch.equal(first[0].pixels, again[0].pixels)
    assert np.array_equal(first[1], again[1])
    assert not torch.equal(first[0].pixels, other[0].pixels)


def test_photometric_jitter_changes_the_image_and_not_the_mask() -> None:
    """The last steps before normalising, so everything before them is drawn alike."""
    changed = 0
    for seed in range(5):
        still, moved = (
            TrainExamples(Coordinates(24, 40), replace(PLAIN, photometric=on), ZERO, ONE).make(0, seed)
            for on in (False, True)
        )
        assert np.array_equal(still[1], moved[1])
        changed += not torch.equal(still[0].pixels, moved[0].pixels)
    assert changed >= 3


def half_and_half(size: int = 40) -> Tensor:
    """Label 1 on the left, 2 on the right of column 20."""
    return (torch.arange(size) >= size // 2).int().expand(size, size) + 1


def shares(mask: Tensor, max_share: float) -> list[float]:
    """Largest share of a label in 200 crops of 10 x 10."""
    found = []
    for number in range(200):
        torch.manual_seed(seed_of("crop", number))
        (top, left, height, width), found_labels = crop_box(
            mask.numpy(), (40, 40), replace(PLAIN, crop=10, max_share=max_share)
        )
        labels = mask[top : top + height, left : left + width]
        assert np.array_equal(found_labels, labels)
        counts = torch.bincount(labels[labels != IGNORE].long().flatten())
        found.append(counts.max().item() / max(1, counts.sum().item()))
    return found


def test_crops_with_one_label_nearly_alone_are_drawn_again() -> None:
    """5 of 31 columns keep both labels under 0.75: ten draws fail with (26/31)^10 = 0.17, one with 0.84."""
    failed = sum(share > 0.75 for share in shares(half_and_half(), 0.75)) / 200
    assert 0.17 - 0.09 < failed < 0.17 + 0.09
    once = sum(share > 0.75 for share in shares(half_and_half(), 1.0)) / 200
    assert 0.84 - 0.09 < once < 0.84 + 0.09


def test_pixels_without_a_label_do_not_count_into_a_share() -> None:
    """Rows without labels leave the shares as they are; counted, they would let every crop pass."""
    mask = half_and_half().clone()
    mask[::2] = IGNORE
    assert shares(mask, 0.75) == shares(half_and_half(), 0.75)


def test_a_mask_of_one_label_is_cropped_all_the_same() -> None:
    torch.manual_seed(0)
    for label, crop, size in ((1, 16, (12, 16)), (IGNORE, 10, (10, 10))):
        mask = np.full((12, 20), label)
        box, labels = crop_box(mask, mask.shape, replace(PLAIN, crop=crop, max_share=0.75))
        assert box[2:] == labels.shape == size
    assert TRIES == 10


def test_many_labels_are_stored_wide_enough() -> None:
    assert view(PLAIN, 0)[2].max() < 24 * 40
    wide = Coordinates(200, 200)  # 40,000 labels do not fit 16 bits
    mask = TrainExamples(wide, replace(PLAIN, short_side=200, crop=200), ZERO, ONE).make(0, 0)[1]
    assert mask.dtype == np.int32
    assert mask.max() == 200 * 200 - 1


@pytest.mark.parametrize("photometric", [False, True])
@pytest.mark.parametrize("crop", [20, 56, 150])
def test_a_view_is_the_one_of_whole_images_bit_for_bit(crop: int, photometric: bool) -> None:
    """Crops inside the image, wider or higher than it, and around it."""
    augment, scenes = AugmentConfig(short_side=40, crop=crop, max_share=0.5, photometric=photometric), Blobs()
    examples = TrainExamples(scenes, augment, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    for seed in range(20):
        view, mask, _ = examples.make(seed % 3, seed)
        with seeded(seed):
            wanted, wanted_mask = in_whole_images(scenes[seed % 3], augment, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
        assert torch.equal(view.normalised(), wanted)
        assert np.array_equal(mask, wanted_mask)
        assert view.pixels.is_contiguous() and view.pixels.dtype == torch.uint8 and mask.flags.c_contiguous
