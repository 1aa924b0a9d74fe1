"""From cells to pixels: bilinear, aligned with the image's corner, padding cut off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stage2_segmentation.pixels import Axis, Strips, axis_weights


def cells(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))


def to_pixels(cells: Tensor, size: tuple[int, int], cell: int, *, stride: int = 1) -> Tensor:
    """[B, κ, h, w] → [B, κ, H, W], in strips of two rows."""
    found = []
    for image in cells.permute(0, 2, 3, 1):
        rows, columns = (
            Axis.of(axis_weights(count, cell, side, stride=stride), image)
            for count, side in zip(image.shape[:2], size, strict=True)
        )
        strips = Strips(image, rows, columns)
        assert (strips.left, strips.right) == (0, size[1])
        found.append(torch.cat([strips.strip(top, min(top + 2, size[0])) for top in range(0, size[0], 2)]))
    return torch.stack(found).permute(0, 3, 1, 2)


def plain(cells: Tensor, size: tuple[int, int], cell: int) -> Tensor:
    """Bilinear interpolation between cell centres at pixel centres, one pixel at a time."""
    pixels = torch.empty(*cells.shape[:2], *size)
    last_row, last_column = cells.shape[2] - 1, cells.shape[3] - 1
    for y in range(size[0]):
        for x in range(size[1]):
            row = min(max((y + 0.5) / cell - 0.5, 0), last_row)
            column = min(max((x + 0.5) / cell - 0.5, 0), last_column)
            top, left = int(row), int(column)
            bottom, right = min(top + 1, last_row), min(left + 1, last_column)
            down, along = row - top, column - left
            above = (1 - along) * cells[..., top, left] + along * cells[..., top, right]
            below = (1 - along) * cells[..., bottom, left] + along * cells[..., bottom, right]
            pixels[..., y, x] = (1 - down) * above + down * below
    return pixels


@pytest.mark.parametrize("cell", [1, 2, 4])
def test_values_lie_between_those_of_the_nearest_cells(cell: int) -> None:
    given, size = cells(3, 4), (3 * cell, 4 * cell)
    torch.testing.assert_close(to_pixels(given, size, cell), plain(given, size, cell))


def test_a_padded_map_is_cut_and_not_stretched() -> None:
    """9x13 pixels in cells of 4: three of 12 rows and three of 16 columns are not image."""
    given = cells(3, 4)
    pixels = to_pixels(given, (9, 13), 4)
    assert torch.equal(pixels, to_pixels(given, (12, 16), 4)[..., :9, :13])
    torch.testing.assert_close(pixels, plain(given, (9, 13), 4))
    assert not torch.allclose(pixels, F.interpolate(given, (9, 13), mode="bilinear"), atol=0.1)


def test_cells_of_one_pixel_are_passed_on() -> None:
    given = cells(3, 4)
    assert torch.equal(to_pixels(given, (3, 2), 1), given[..., :3, :2])


@pytest.mark.parametrize(("cell", "stride"), [(3, 3), (9, 3), (5, 5), (3, 9), (4, 1)])
def test_a_stride_takes_every_strideth_pixel_from_the_middle_of_the_first(cell: int, stride: int) -> None:
    given = cells(3, 6)
    all_pixels = plain(given, (3 * cell, 6 * cell), cell)
    some = all_pixels[..., stride // 2 :: stride, stride // 2 :: stride]
    torch.testing.assert_close(to_pixels(given, (some.shape[2], some.shape[3]), cell, stride=stride), some)


@pytest.mark.parametrize(("cell", "stride"), [(4, 2), (8, 4), (8, 3), (16, 5)])
def test_any_stride_stays_within_a_pixel_of_every_strideth(cell: int, stride: int) -> None:
    """Even strides have no middle pixel, others may not divide the map. A slope of 1 per pixel shows how far."""
    height = 4 * cell
    slope = torch.arange(4.0)[:, None] * cell + (cell - 1) / 2  # value = row of the pixel
    picked = torch.arange(stride // 2, height, stride)
    found = to_pixels(slope.expand(1, 1, 4, 4).clone(), (len(picked), len(picked)), cell, stride=stride)[0, 0, :, 0]
    inner = (picked >= cell) & (picked < height - cell)  # beyond the outer centres the slope ends
    assert int(inner.sum()) > 1
    assert (found - picked)[inner].abs().max() <= 1.0
