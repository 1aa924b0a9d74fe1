"""From the cells of all windows and views of an image to the rank of each of its pixels, some rows at a time.

Legend: κ ranks of the image's one ranking, h w cells, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from kappaseg_core.precision import full_precision
from stage2_segmentation.pixels import Axis, Strips, strips_of

#: cells along an axis that one pixel can depend on: two of the upsampling, three where a resizing follows it, which
#: looks at two neighbouring pixels
NEIGHBOURS = 3
#: share of contested ranks up to which leaving out the others pays
FEW = 0.4


@dataclass(frozen=True)
class Piece:
    """The logits of a window, cells f32 [h, w, κ], and the weights that its cells have in the image's pixels.

    alone: no other window of its view says anything about the image, so that all weights of a pixel add up to 1.
    """

    cells: Tensor
    rows: Axis
    columns: Axis
    alone: bool

    @property
    def width(self) -> int:
        """Numbers that a pixel has at one time while its scores are made."""
        return self.cells.shape[2]

    def contested(self) -> Tensor | None:
        """Which ranks can win where (`can_win`), where few can; else None: it does not pay to ask."""
        if not self.alone:
            return None
        contested = can_win(self.cells)
        return contested if float(contested.float().mean()) < FEW else None

    def strips(self) -> Strips:
        return Strips(self.cells, self.rows, self.columns)

    def shares(self, scores: Tensor) -> Tensor:
        """Scores [rows, W, κ] of a view as they are averaged with those of other views."""
        return scores.softmax(2)


def best_ranks(views: Sequence[Sequence[Piece]], size: tuple[int, int]) -> Tensor:
    """The rank of each pixel, i64 [H, W]: the largest logit of a single view, or mean of the softmax of several. Of
    queries: the largest score, or mean of scores."""
    device = views[0][0].cells.device
    with full_precision(device):  # in bf16, neighbouring logits tie and the first rank wins
        if len(views) == 1 and (contested := views[0][0].contested()) is not None:
            return joined(contested_ranks(views[0][0], contested, size), size, device)
        return joined((scores.argmax(2) for scores in rank_scores(views, size)), size, device)


def joined(strips: Iterator[Tensor], size: tuple[int, int], device: torch.device) -> Tensor:
    """The strips i64 [some rows, W], one below the other.

    Written into one map as they come: pieces that are kept between the scores of strips fragment the memory (0.2 GiB
    more for a photograph of 4000 x 6000 pixels, once 3 GiB).
    """
    found, top = torch.empty(size, dtype=torch.int64, device=device), 0
    for strip in strips:
        found[top : top + len(strip)] = strip
        top += len(strip)
    return found


def rank_scores(views: Sequence[Sequence[Piece]], size: tuple[int, int]) -> Iterator[Tensor]:
    """Scores [some rows, W, κ], strip after strip: those of a single view, or the mean of the shares of several."""
    any_piece = views[0][0]
    upsampled = [[piece.strips() for piece in pieces] for pieces in views]
    for top, bottom in strips_of(*size, any_piece.width, any_piece.cells.device):
        scores = (together(pieces, top, bottom, size[1]) for pieces in upsampled)
        if len(upsampled) == 1:
            yield next(scores)
        else:  # one view at a time: on a GPU each is a strip of 256 MiB, and six scales mirrored are twelve
            yield reduce(torch.add, (any_piece.shares(view) for view in scores)) / len(upsampled)


def together(pieces: Sequence[Strips], top: int, bottom: int, width: int) -> Tensor:
    """Scores [rows, W, κ] of a view: the sum over its windows, whose weights hold the division by their number."""
    if len(pieces) == 1:
        return pieces[0].strip(top, bottom)
    total = pieces[0].across.new_zeros(bottom - top, width, pieces[0].ranks)
    for piece in pieces:
        if piece.rows.cells(top, bottom) != (0, 0):
            total[:, piece.left : piece.right] += piece.strip(top, bottom)
    return total


def contested_ranks(piece: Piece, contested: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """The best rank of each pixel, i64 [some rows, W], strip after strip, looking only at ranks that can win there.

    A pixel's logits are weighted means of those of a few neighbouring cells. So a rank whose largest value among these
    is below another one's smallest wins nowhere between them, and most ranks need not be upsampled in most strips.
    contested: see `can_win`.
    """
    cells, rows, columns = piece.cells, piece.rows, piece.columns.weights
    around = cells.shape[0] - len(contested) + 1  # rows of cells in a neighbourhood
    for top, bottom in strips_of(*size, cells.shape[2], cells.device):
        first, last = rows.cells(top, bottom)
        start = min(first, len(contested) - 1)
        ranks = contested[start : max(start, last - around) + 1].any(0).nonzero()[:, 0]
        across = columns @ cells[first:last].index_select(2, ranks)
        scores = rows.weights[top:bottom, first:last] @ across.flatten(1)
        yield ranks[scores.view(-1, *across.shape[1:]).argmax(2)]


def can_win(cells: Tensor) -> Tensor:
    """Which ranks can be the best of a pixel somewhere between neighbouring rows of cells: bool [neighbourhoods, κ].

    Neighbourhood i holds the rows of cells from i on. Where a logit is NaN, all ranks can.
    """
    values = cells.permute(2, 0, 1)
    around = [min(NEIGHBOURS, side) for side in values.shape[1:]]
    highest, lowest = F.max_pool2d(values, around, stride=1), -F.max_pool2d(-values, around, stride=1)
    return (~(highest < lowest.amax(0))).any(2).T
