"""From the queries of a mask network to the segments of an image (Cheng et al., "Per-Pixel Classification is Not All
You Need for Semantic Segmentation", NeurIPS 2021, and "Masked-attention Mask Transformer", CVPR 2022).

    kept queries    the best of κ labels and "no object" is a label, with a probability above `score`
    owner           a pixel goes to the kept query with the largest probability · mask probability
    segment         a query that owns at least `overlap` of the pixels where its mask probability is 0.5 or more
    stuff           queries of one kind of stuff are one segment

Legend: Q queries, N kept ones, κ ranks of the image's one ranking, h w cells, H W pixels, K labels, S segments.
Queries never meet as N x H x W: pixels are made some rows at a time, and of each only its owner is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kappaseg_core.precision import full_precision
from kappaseg_core.ranking import IGNORE, PADDING_LOGIT, Ranking
from kappaseg_core.segments import VOID, Segments
from stage2_segmentation.config import SegmentsConfig
from stage2_segmentation.pixels import Axis, Strips, axis_weights, resized_axis, strips_of

#: Mask probability from which a pixel is said to be in a query's mask.
INSIDE = 0.5


@dataclass(frozen=True)
class Queries:
    """What a network says of one image.

    class_logits: f32 [Q, κ + 1], of the ranks of the image's ranking, and of "no object" last.
    mask_logits: f32 [Q, h, w].
    """

    class_logits: Tensor
    mask_logits: Tensor


@dataclass(frozen=True)
class SegmentRule:
    """When a query becomes a segment, in probabilities and shares.

    least: mask probability that the pixels of a segment have at least (Mask2Former: 0.5; MaskFormer: 0, which keeps
    all pixels that a query owns).
    The published thresholds are for a softmax over all K labels. Over κ labels probabilities are higher, so they have
    to be looked at again where κ is small.
    """

    score: float = 0.8
    overlap: float = 0.8
    least: float = INSIDE

    @classmethod
    def of(cls, config: SegmentsConfig) -> SegmentRule:
        """The rule of the settings; what they leave open is as published."""
        return cls(**{name: value for name, value in vars(config).items() if value is not None})


@dataclass(frozen=True)
class View:
    """How cells lie in the image. cell: side of one in pixels of the network's input.   seen: height and width of the
    image in that input, from its upper left corner (the rest is padding).   size: H and W of the map that is made."""

    cell: int
    seen: tuple[int, int]
    size: tuple[int, int]

    def axes(self, cells: Tensor) -> tuple[Axis, Axis]:
        """Weights of the cells [h, w, N] in rows and columns: upsampled, cut to the image, resized, as published."""
        rows, columns = (
            Axis.of(resized_axis(axis_weights(count, self.cell, seen), side), cells)
            for count, seen, side in zip(cells.shape, self.seen, self.size, strict=False)
        )
        return rows, columns


def segments_of_queries(
    queries: Queries, ranking: Ranking, things: Tensor, view: View, rule: SegmentRule | None = None
) -> Segments:
    """The segments of an image among the labels of its ranking (of one image), in the order of their first query.

    things: bool [K]. All on one device, where the segments are then too.
    """
    rule = rule or SegmentRule()
    with full_precision(queries.mask_logits.device):
        scores, labels, kept = kept_queries(queries.class_logits, ranking, rule.score)
        cells = queries.mask_logits[kept].float().permute(1, 2, 0)
        owner, areas = owners(cells, scores, view, rule.least)
    number, labels = numbered(labels, things[labels], areas.whole(rule.overlap))
    return Segments(number[owner.long()], labels, torch.zeros_like(labels, dtype=torch.bool))


def kept_queries(class_logits: Tensor, ranking: Ranking, score: float) -> tuple[Tensor, Tensor, Tensor]:
    """Probability f32 [N], label i64 [N] and index i64 [N] of the queries that are objects. Padding ranks never win."""
    padding = torch.cat([~ranking.valid[0], ranking.valid.new_zeros(1)])
    best, ranks = class_logits.float().masked_fill(padding, PADDING_LOGIT).softmax(1).max(1)
    kept = ((ranks < ranking.kappa) & (best > score)).nonzero()[:, 0]
    return best[kept], ranking.labels[0, ranks[kept]], kept


@dataclass(frozen=True)
class Areas:
    """Pixels of the kept queries, i64 [N]: those that each owns, those inside its mask, and of those owned how many its
    segment would have."""

    owned: Tensor
    inside: Tensor
    segment: Tensor

    def whole(self, overlap: float) -> Tensor:
        """Which queries become segments, bool [N]."""
        return (self.inside > 0) & (self.segment > 0) & (self.owned.double() / self.inside >= overlap)


def owners(cells: Tensor, scores: Tensor, view: View, least: float) -> tuple[Tensor, Areas]:
    """The kept query that owns each pixel with a mask probability of `least`, i32 [H, W] (IGNORE: none), and areas.

    cells: mask logits f32 [h, w, N].   scores: f32 [N].
    """
    count = len(scores)
    owner = torch.full(view.size, IGNORE, dtype=torch.int32, device=cells.device)
    areas = Areas(*torch.zeros(3, count, dtype=torch.int64, device=cells.device))
    if count:
        for top, probability in mask_strips(cells, view):
            best = (probability * scores).argmax(2)
            sure = probability.gather(2, best[..., None])[..., 0] >= least
            areas.owned.add_(torch.bincount(best.flatten(), minlength=count))
            areas.inside.add_((probability >= INSIDE).sum((0, 1)))
            areas.segment.add_(torch.bincount(best[sure], minlength=count))
            owner[top : top + len(best)] = torch.where(sure, best, IGNORE)
    return owner, areas


def mask_strips(cells: Tensor, view: View) -> Iterator[tuple[int, Tensor]]:
    """First row, and mask probabilities f32 [some rows, W, N] from there on."""
    strips = Strips(cells, *view.axes(cells))
    for top, bottom in strips_of(*view.size, cells.shape[2], cells.device):
        yield top, strips.strip(top, bottom).sigmoid()


def numbered(labels: Tensor, thing: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the segment of each kept query, i32 [N + 1], VOID where it is none (and last, for IGNORE), and the
    labels of the segments, i64 [S]. labels: i64 [N].   thing, whole: bool [N]."""
    number, found, stuff = [VOID] * (len(labels) + 1), list[int](), dict[int, int]()
    queries = zip(labels.tolist(), thing.tolist(), whole.tolist(), strict=True)
    for query, (label, is_thing, is_whole) in enumerate(queries):
        if not is_whole:
            continue
        if is_thing or label not in stuff:
            found.append(label)
            stuff.setdefault(label, len(found))
        number[query] = len(found) if is_thing else stuff[label]
    return torch.tensor(number, dtype=torch.int32, device=labels.device), labels.new_tensor(found)
