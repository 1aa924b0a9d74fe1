"""COCO's compressed run lengths → masks, with a check that pycocotools leaves out: that they cover the image.

(Its decode hands out unset memory where runs are missing, and warns under NumPy 2.)
"""

from __future__ import annotations

import numpy as np


def runs_of(text: bytes) -> np.ndarray:
    """Run lengths i64 [n], of zeros first, of COCO's text: base 32 from "0" on, lowest digits first, 32 = more follow.

    A number's last digit holds its sign (16). From the fourth on, numbers are differences to the last but one.
    """
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - ord("0")
    last = np.flatnonzero(digits & 32 == 0)
    if len(digits) == 0 or last.size == 0 or last[-1] != len(digits) - 1 or digits.min() < 0 or digits.max() > 63:
        raise ValueError("the text of its run lengths is damaged")
    first = np.concatenate(([0], last[:-1] + 1))
    place = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    runs = np.add.reduceat((digits & 31) << (5 * place), first)
    runs -= np.where(digits[last] & 16, 1 << (5 * (place[last] + 1)), 0)
    for start in (1, 2):
        runs[start::2] = np.cumsum(runs[start::2])
    return runs


def require_whole(runs: np.ndarray, height: int, width: int) -> None:
    """Raises ValueError where the runs are not those of H x W pixels."""
    if runs.size == 0 or runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(f"its run lengths cover {runs.sum()} pixels of {height}x{width}")


def mask_of(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    """bool [H, W], down the columns, of whole runs."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width, order="F")
