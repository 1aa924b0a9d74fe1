"""Label maps of photos that carry an EXIF orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.flaws import SizesDiffer
from kappaseg_core.scenes.upright import upright, upright_with

STORED = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)


def photo(path: Path, orientation: int) -> Path:
    """A photo stored as 2 x 3 pixels with that orientation."""
    picture = Image.fromarray(np.zeros((2, 3, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_label_map_of_the_stored_pixels_is_turned_as_the_photo_is(orientation: int, tmp_path: Path) -> None:
    picture = Image.fromarray(STORED)
    picture.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(picture))
    assert np.array_equal(upright(STORED, orientation), expected)
    turned = upright_with(photo(tmp_path / "photo.jpg", orientation), STORED.astype(np.int32))
    assert np.array_equal(turned, expected)


def test_a_label_map_that_fits_the_upright_photo_alone_is_left_as_it_is(tmp_path: Path) -> None:
    mask = STORED.T
    assert upright_with(photo(tmp_path / "photo.jpg", 6), mask) is mask


def test_a_label_map_of_neither_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SizesDiffer, match=r"is 2x3 \(height x width\), its label map is 4x3"):
        upright_with(photo(tmp_path / "photo.jpg", 6), np.zeros((4, 3), np.int32))


def test_a_photo_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"no photo")
    with pytest.raises(UserError, match=r"photo\.jpg is no picture of a known format"):
        upright_with(tmp_path / "photo.jpg", STORED)
