"""The photometric distortion is torchvision's, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from kappaseg_core.seeding import seeded
from stage2_segmentation.photometric import ROWS, Photometric, in_strips, with_contrast, with_hue


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Random colours, with grey, black, white and saturated pixels among them."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    pixels[:, :, ::3] = pixels[:1, :, ::3]
    pixels[:, ::4] = pixels[:, ::4] // 128 * 255
    return pixels


@pytest.mark.parametrize("size", [(ROWS, 16), (2 * ROWS + 3, 37), (1, 1), (ROWS - 1, 333)])
@pytest.mark.parametrize("seed", range(12))
def test_a_distorted_image_is_the_one_of_torchvision(seed: int, size: tuple[int, int]) -> None:
    image = picture(*size, seed)
    with seeded(seed):
        found = Photometric()(image)
        after = torch.rand(())
    with seeded(seed):
        wanted = v2.RandomPhotometricDistort()(tv_tensors.Image(image))
        assert after == torch.rand(())
    assert torch.equal(found, wanted.as_subclass(Tensor))


def test_seeds_take_every_step() -> None:
    """Otherwise the test above might compare nothing."""
    draws = []
    for seed in range(12):
        with seeded(seed):
            draws.append(v2.RandomPhotometricDistort().make_params([picture(4, 4)]))
    for name in ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor", "channel_permutation"):
        assert {draw[name] is None for draw in draws} == {True, False}
    assert {draw["contrast_before"] for draw in draws if draw["contrast_factor"] is not None} == {True, False}


@pytest.mark.parametrize("turn", [-0.05, -1e-9, 0.0, 0.0123, 0.05])
def test_the_hue_of_every_sixth_of_the_circle_is_moved_as_torchvision_moves_it(turn: float) -> None:
    levels = torch.tensor([0, 1, 2, 3, 60, 127, 128, 200, 253, 254, 255], dtype=torch.uint8)
    colours = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).reshape(3, 11, 121)
    assert torch.equal(with_hue(colours, turn), F.adjust_hue(colours, turn))


@pytest.mark.slow
@pytest.mark.parametrize("turn", [-0.05, 0.0321])
def test_the_hue_of_every_colour_is_moved_as_torchvision_moves_it(turn: float) -> None:
    level = torch.arange(256, dtype=torch.uint8)
    for red in range(0, 256, 16):
        colours = torch.stack(torch.meshgrid(level[red : red + 16], level, level, indexing="ij")).reshape(3, 1024, 1024)
        assert torch.equal(in_strips(lambda strip: with_hue(strip, turn), colours), F.adjust_hue(colours, turn))


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.37])
def test_contrast_is_taken_about_the_mean_of_the_whole_image(factor: float) -> None:
    image = picture(3 * ROWS + 5, 41)
    image[:, :ROWS] = 0  # a mean of its own in the first strip
    assert torch.equal(with_contrast(image, factor), F.adjust_contrast(image, factor))
