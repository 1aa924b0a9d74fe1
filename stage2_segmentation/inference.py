"""Label maps of whole images: whole, by sliding window, over several scales and mirrored.

Legend: κ ranks of the image's one ranking, H W pixels. No pixel has a score for all K labels: scores are averaged and
compared among κ ranks, and label ids are looked up last. (The release ranks every window and scale anew, scatters
into K channels filled with -100, and averages those.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from kappaseg_core.ranking import OwnRanking, Ranking, to_label_space
from kappaseg_core.segments import Segments
from stage2_segmentation.config import InferenceConfig
from stage2_segmentation.pixels import Axis, axis_weights, resized_axis
from stage2_segmentation.query_maps import QueryPiece
from stage2_segmentation.rank_maps import Piece, best_ranks
from stage2_segmentation.structures import AnyPrediction, QueryPrediction, Seen

WINDOWS_AT_ONCE = 4


class Network(Protocol):
    """Images f32 [B, 3, H, W] → what is seen in them → a prediction, its logits in cells of `cell` pixels."""

    @property
    def cell(self) -> int: ...

    def look(self, images: Tensor) -> Seen: ...

    def segment(self, seen: Seen, ranking: Ranking) -> AnyPrediction: ...


@dataclass(frozen=True)
class Segmented:
    """One image, segmented. label_map: i64 [H, W].   ranking: of one image.

    label_scores: f32 [K] in [0, 1] of the network's label branch; None without one.
    segments: of the objects and kinds of stuff, of a network that learns objects; None for another (objects.py).
    """

    label_map: Tensor
    ranking: Ranking
    label_scores: Tensor | None = None
    segments: Segments | None = None


def segmented(
    network: Network, image: Tensor, ranking: Ranking | OwnRanking, plan: InferenceConfig, *, size: tuple[int, int]
) -> Segmented:
    """Label ids at `size` of one image f32 [3, H', W'], normalised, among the labels of its one ranking.

    A network that ranks for itself does so once for the image: a label's score is the largest that it gets in any
    window of the view nearest to the image as it is, and all windows, scales and flips are segmented with that ranking.
    (The release ranks every forward pass anew.)
    """
    first, label_scores = first_looks(network, image, plan)
    if isinstance(ranking, OwnRanking):
        ranking = ranking.of(one_image(label_scores))
    seen = pieces_of_views(network, image, ranking, plan, size=size, first=first)
    return Segmented(to_label_space(best_ranks(seen, size)[None], ranking)[0], ranking, label_scores)


def own_ranking(network: Network, image: Tensor, ranking: OwnRanking, plan: InferenceConfig) -> Ranking:
    """The network's own ranking of an image, which `segmented` would use."""
    return ranking.of(one_image(first_looks(network, image, plan)[1]))


def one_image(scores: Tensor | None) -> Tensor:
    assert scores is not None, "the network has no label branch (see Stage2Config)"
    return scores[None]


def views(plan: InferenceConfig) -> list[tuple[float, bool]]:
    """(scale, mirrored) of every view, the one that is nearest to the image as it is first."""
    scales = sorted(plan.scales, key=lambda scale: abs(math.log(scale)))
    return [(scale, mirrored) for scale in scales for mirrored in (False, True)[: 1 + plan.flip]]


@dataclass(frozen=True)
class Look:
    """Some windows of a view of an image, after the network has looked at them.

    places: their top left corners in the view of `view` pixels; each is `size` pixels large.
    """

    view: tuple[int, int]
    places: list[tuple[int, int]]
    size: tuple[int, int]
    stride: int
    seen: Seen


def looks(network: Network, image: Tensor, plan: InferenceConfig, scale: float, mirrored: bool) -> Iterator[Look]:
    """The windows of the image at one scale, mirrored or not, a few at a time; a single one for mode "whole"."""
    if scale != 1.0:
        wanted = [max(1, round(side * scale)) for side in image.shape[1:]]
        image = F.interpolate(image[None], wanted, mode="bilinear", align_corners=False)[0]
    image = image.flip(2) if mirrored else image
    view = (image.shape[1], image.shape[2])
    window = plan.window if plan.mode == "slide" else max(view)
    height, width = (min(window, side) for side in view)
    stride = plan.stride if plan.mode == "slide" else window
    places = list(corners(*view, window, stride))
    for start in range(0, len(places), WINDOWS_AT_ONCE):
        group = places[start : start + WINDOWS_AT_ONCE]
        pieces = torch.stack([image[:, top : top + height, left : left + width] for top, left in group])
        yield Look(view, group, (height, width), stride, network.look(pieces))


def first_looks(network: Network, image: Tensor, plan: InferenceConfig) -> tuple[Iterable[Look], Tensor | None]:
    """The looks at the view that an image is ranked by, and f32 [K], the largest score of each label in any of its
    windows. Without a label branch there are no scores, and windows are looked at when they are asked for."""
    seen = looks(network, image, plan, *views(plan)[0])
    first = next(seen)
    if first.seen.label_logits is None:
        return chain([first], seen), None
    kept = [first, *seen]
    logits = [look.seen.label_logits for look in kept if look.seen.label_logits is not None]
    return kept, torch.cat(logits).amax(0).float().sigmoid()


def pieces_of_views(
    network: Network, image: Tensor, ranking: Ranking, plan: InferenceConfig, *,
    size: tuple[int, int], first: Iterable[Look] | None = None,
) -> list[list[Piece]]:  # fmt: skip
    """The logits of an image's one ranking in all windows of all views, each placed in the image at `size`.

    first: the looks at the first view, where they have been taken already.
    """
    pieces = []
    for number, (scale, mirrored) in enumerate(views(plan)):
        seen = first if number == 0 and first is not None else looks(network, image, plan, scale, mirrored)
        pieces.append([piece for look in seen for piece in placed(network, look, ranking, mirrored, size)])
    return pieces


def placed(network: Network, look: Look, ranking: Ranking, mirrored: bool, size: tuple[int, int]) -> Iterator[Piece]:
    """The windows of a look, segmented and placed in the image."""
    prediction = network.segment(look.seen, repeated(ranking, len(look.places)))
    return in_image(prediction, look, network.cell, mirrored, size)


def in_image(
    prediction: AnyPrediction, look: Look, cell: int, mirrored: bool, size: tuple[int, int]
) -> Iterator[Piece]:
    """The windows of a look, each as cells with the weights that they have in the image's rows and columns.

    A pixel's logits (its scores, where queries have masks) are the mean over the windows that hold it. Windows form a
    grid, so how many these are is a number of its row times one of its column.
    """
    rows_seen, columns_seen = (
        times_covered(side, window, look.stride) for side, window in zip(look.view, look.size, strict=True)
    )
    for (top, left), (cells, piece) in zip(look.places, in_cells(prediction), strict=True):
        rows = window_weights(cells.shape[0], cell, top, look.size[0], rows_seen)
        columns = window_weights(cells.shape[1], cell, left, look.size[1], columns_seen)
        columns = columns.flip(0) if mirrored else columns
        yield piece(
            cells, Axis.of(resized_axis(rows, size[0]), cells), Axis.of(resized_axis(columns, size[1]), cells),
            alone=look.size == look.view,
        )  # fmt: skip


def in_cells(prediction: AnyPrediction) -> Iterator[tuple[Tensor, Callable[..., Piece]]]:
    """Of each image the cells f32 [h, w, n] and what makes a piece of them."""
    if isinstance(prediction, QueryPrediction):
        classes = prediction.class_logits.float().softmax(2)[..., :-1]
        for masks, probabilities in zip(prediction.mask_logits.float(), classes, strict=True):
            yield masks.permute(1, 2, 0), partial(QueryPiece, classes=probabilities)
        return
    for cells in prediction.rank_logits.float().permute(0, 2, 3, 1):
        yield cells, Piece


def window_weights(cells: int, cell: int, start: int, pixels: int, seen: Tensor) -> Tensor:
    """Weights [side of the view, cells] of a window of so many pixels from `start` on.

    seen: how many windows hold each pixel of that side.
    """
    weights = torch.zeros(len(seen), cells, dtype=torch.float64)
    weights[start : start + pixels] = axis_weights(cells, cell, pixels) / seen[start : start + pixels, None]
    return weights


def corners(height: int, width: int, window: int, stride: int) -> Iterator[tuple[int, int]]:
    """Top left corners of the windows, row by row: multiples of stride, the last one moved inside the image."""
    for top in starts(height, window, stride):
        for left in starts(width, window, stride):
            yield top, left


def starts(side: int, window: int, stride: int) -> list[int]:
    last = max(0, side - window)
    return [min(i * stride, last) for i in range(-(-last // stride) + 1)]


def times_covered(side: int, window: int, stride: int) -> Tensor:
    """How many of the windows along a side hold each of its pixels, f32 [side]."""
    count = torch.zeros(side)
    for start in starts(side, window, stride):
        count[start : start + window] += 1
    return count


def repeated(ranking: Ranking, times: int) -> Ranking:
    """The ranking of one image for `times` pieces of it."""
    return Ranking(*(t.expand(times, -1) for t in (ranking.labels, ranking.scores, ranking.valid)))
