"""From cells to pixels, some rows at a time. Legend: κ ranks, h w cells, H W pixels.

Bilinear upsampling is linear and works on each axis by itself, and so does everything else that may follow it before
ranks are compared: cutting padding off, placing a window, mirroring, resizing. So all of it together is one matrix per
axis, and the scores of a strip of rows are two small matrix products away from the cells. No tensor of κ × H × W is
ever there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

#: scores of a strip: on a CPU what its cache holds (4 MiB), on a GPU enough to keep it busy
STRIP = {"cpu": 2**20}
STRIP_ELSEWHERE = 2**26


@dataclass(frozen=True)
class Axis:
    """How much the cells of an axis count at its pixels: weights [pixels, cells].

    reach: for each pixel the cells that count, from and up to; (0, 0) where none does.
    """

    weights: Tensor
    reach: list[tuple[int, int]]

    @classmethod
    def of(cls, weights: Tensor, like: Tensor) -> Axis:
        """From weights on the CPU, for use with `like` (its device and precision)."""
        seen = weights.ne(0)
        counts = seen.any(1)
        first, last = seen.int().argmax(1) * counts, (weights.shape[1] - seen.flip(1).int().argmax(1)) * counts
        return cls(weights.to(like), list(zip(first.tolist(), last.tolist(), strict=True)))

    def cells(self, start: int, end: int) -> tuple[int, int]:
        """The cells that the pixels start..end see, from and up to; (0, 0) for none."""
        seen = [reach for reach in self.reach[start:end] if reach[1]]
        return (min(first for first, _ in seen), max(last for _, last in seen)) if seen else (0, 0)

    def pixels(self) -> tuple[int, int]:
        """The pixels that see any cell, from and up to."""
        seen = [pixel for pixel, (_, last) in enumerate(self.reach) if last]
        return (seen[0], seen[-1] + 1) if seen else (0, 0)


def axis_weights(cells: int, cell: int, pixels: int, *, stride: int = 1) -> Tensor:
    """Weights f64 [pixels, cells] of bilinear upsampling; each row adds up to 1.

    cell: side of a cell in pixels. A map covers cells·cell pixels of which only the first are image (backbones pad to
    the right and to the bottom): what is beyond is cut off. (The released port stretches the padded map over the image
    instead, and so shifts it by up to one cell where the size is no multiple of it; the original Segmenter cuts.)
    stride: every stride-th pixel; `pixels` counts these.
    """
    return resized_axis(torch.eye(cells, dtype=torch.float64), -(-cells * cell // stride))[:pixels]


def both_axes(
    cells: Sequence[int], cell: int, pixels: Sequence[int], like: Tensor, *, stride: int = 1
) -> tuple[Axis, Axis]:
    """Rows and columns of maps of so many cells a side, at so many pixels: `axis_weights`, on the device of `like`."""
    rows, columns = (
        Axis.of(axis_weights(count, cell, side, stride=stride), like) for count, side in zip(cells, pixels, strict=True)
    )
    return rows, columns


def resized_axis(weights: Tensor, pixels: int) -> Tensor:
    """Weights [n, cells] of n pixels → [pixels, cells] of the same axis, resized bilinearly."""
    if len(weights) == pixels:
        return weights
    return F.interpolate(weights.T[None, :, :, None], (pixels, 1), mode="bilinear", align_corners=False)[0, :, :, 0].T


class Strips:
    """The pixels that cells f32 [h, w, κ] give with the weights of both axes, strip by strip.

    Score of pixel (y, x): Σ_ij rows[y, i] columns[x, j] cells[i, j]. Only pixels from left up to right see the cells.
    """

    def __init__(self, cells: Tensor, rows: Axis, columns: Axis) -> None:
        self.rows = rows
        self.left, self.right = columns.pixels()
        self.columns = columns.weights[self.left : self.right]
        self.across = self.columns @ cells  # [h, right - left, κ]

    @property
    def ranks(self) -> int:
        """κ, of the scores."""
        return self.across.shape[2]

    def strip(self, top: int, bottom: int, out: Tensor | None = None) -> Tensor:
        """Scores [bottom - top, right - left, κ] of some rows.

        out: a vector of at least as many numbers to write them to.
        """
        first, last = self.rows.cells(top, bottom)
        shape = (bottom - top, *self.across.shape[1:])
        place = None if out is None else out[: math.prod(shape)].view(shape[0], -1)
        found = torch.mm(self.rows.weights[top:bottom, first:last], self.across[first:last].flatten(1), out=place)
        return found.view(shape)


def to_pixels(logits: Tensor, size: tuple[int, int], cell: int) -> Tensor:
    """All at once, f32 [B, κ, h, w] → [B, κ, H, W], for programs that are traced and cannot go strip by strip."""
    height, width = (cells * cell for cells in logits.shape[-2:])
    if cell > 1:
        logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
    return logits[..., : size[0], : size[1]]


def strips_of(height: int, width: int, kappa: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Top and bottom of the strips of an image of that size."""
    step = max(1, STRIP.get(device.type, STRIP_ELSEWHERE) // (width * kappa))
    for top in range(0, height, step):
        yield top, min(top + step, height)
