"""Label maps beside photos with an EXIF orientation: cameras store pixels as the sensor lay, and say how to turn them.

Our photos are upright (images.photo). Published label maps were drawn and written with tools that ignore the tag, so
they belong to the pixels as stored, and are turned with them. One that fits the upright photo alone is left as it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.flaws import SizesDiffer
from kappaseg_core.scenes.images import stored_shape_and_orientation


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W] as stored → [H', W'] upright, for an EXIF orientation 1..8 (others mean 1)."""
    turned = {
        2: lambda: values[:, ::-1],
        3: lambda: values[::-1, ::-1],
        4: lambda: values[::-1],
        5: lambda: values.T,
        6: lambda: np.rot90(values, -1),
        7: lambda: values[::-1, ::-1].T,
        8: lambda: np.rot90(values),
    }
    return turned[orientation]() if orientation in turned else values


def upright_with(photo: Path, mask: np.ndarray) -> np.ndarray:
    """The label map of a photo as large as the photo is upright. Raises UserError, SizesDiffer."""
    if not photo.exists():
        raise UserError(f"image {photo} does not exist; unpack the archive of the images again")
    shape, orientation = stored_shape_and_orientation(photo, f"image {photo}")
    if mask.shape == shape:
        return upright(mask, orientation)
    if mask.shape == upright(np.empty(shape, np.bool_), orientation).shape:
        return mask
    sizes = "{}x{}".format(*shape), "{}x{}".format(*mask.shape)
    raise SizesDiffer(
        f"image {photo} is {sizes[0]} (height x width), its label map is {sizes[1]}; unpack both archives again"
    )
