"""Photo and label map with a shorter side of so many pixels, resampled as OpenCV does it, which made published sets.

Its bilinear photo takes the four pixels around each point, also where it shrinks (no mean over more of them); its
nearest label map takes the pixel at the lower corner of each cell.
"""

from __future__ import annotations

import numpy as np


def shrunk_shape(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width with the shorter one at `short_side`; as they are where that would enlarge them."""
    if min(height, width) <= short_side:
        return height, width
    if width >= height:
        return short_side, round(width / height * short_side)
    return round(height / width * short_side), short_side


def bilinear(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """u8 [H, W, 3] → u8 [h, w, 3]. OpenCV rounds twice, so a value may differ from its own by one."""
    (top, bottom, down), (left, right, across) = map(_neighbours, picture.shape[:2], shape)
    down, across = down[:, None, None], across[:, None]
    rows = picture[top] * (1 - down) + picture[bottom] * down
    mixed = rows[:, left] * (1 - across) + rows[:, right] * across
    return (mixed + 0.5).astype(np.uint8)


def nearest(ids: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[H, W] → [h, w]."""
    rows, columns = (np.arange(new) * old // new for old, new in zip(ids.shape, shape, strict=True))
    return ids[rows][:, columns]


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new pixel: the old ones before and behind its centre, and how far behind it lies, f32 0..1."""
    centre = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    before = centre.astype(np.int64)
    return before, np.minimum(before + 1, old - 1), (centre - before).astype(np.float32)
