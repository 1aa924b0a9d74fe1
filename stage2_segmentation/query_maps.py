"""The scores of ranks at the pixels of an image, from the masks and classes of queries, some rows at a time.

Legend: κ ranks of the image's one ranking, Q queries, h w cells, H W pixels. Never Q × H × W nor κ × H × W.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stage2_segmentation.pixels import Axis, Strips
from stage2_segmentation.rank_maps import Piece


@dataclass(frozen=True)
class QueryPiece(Piece):
    """The queries of a window. cells: their mask logits f32 [h, w, Q].   classes: of each query the probabilities of
    the ranks, f32 [Q, κ], of a softmax with "no object".

    The score of rank k at a pixel is Σ_q classes[q, k] σ(x_q), x_q the mask logit of query q there (Sec. 3.4 of Cheng
    et al., NeurIPS 2021). Windows and views are averaged as such scores, after the sigmoid.
    """

    classes: Tensor

    @property
    def width(self) -> int:
        return max(self.classes.shape)

    def contested(self) -> None:
        """A rank's score is no weighted mean of cells."""

    def strips(self) -> QueryStrips:
        return QueryStrips(self)

    def shares(self, scores: Tensor) -> Tensor:
        return scores


class QueryStrips(Strips):
    """The scores of ranks that the queries of a window give, strip by strip.

    The weights of a pixel add up to the share that the window has in its score. Its mask logits are means over the
    cells, so that share is taken out of them, and the scores are multiplied by it.
    """

    def __init__(self, piece: QueryPiece) -> None:
        rows, self.row_share = parted(piece.rows)
        columns, column_share = parted(piece.columns)
        super().__init__(piece.cells, rows, columns)
        self.classes, self.column_share = piece.classes, column_share[self.left : self.right]

    @property
    def ranks(self) -> int:
        return self.classes.shape[1]

    def strip(self, top: int, bottom: int, out: Tensor | None = None) -> Tensor:
        scores = super().strip(top, bottom).sigmoid() @ self.classes
        return scores * self.column_share[:, None] * self.row_share[top:bottom, None, None]


def parted(axis: Axis) -> tuple[Axis, Tensor]:
    """An axis whose weights add up to 1 at every pixel that sees a cell, and what they added up to, [pixels]."""
    share = axis.weights.sum(1)
    return Axis(axis.weights / torch.where(share > 0, share, 1.0)[:, None], axis.reach), share
