"""Label maps of whole images: whole, by sliding window, over several scales and mirrored.

Legend: κ ranks of the image's one ranking, H W pixels. No pixel has a score for all K labels: scores are averaged and
compared among κ ranks, and label ids are looked up last. (The release ranks every window and scale anew, scatters
into K channels filled with -100, and averages those.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from kappaseg_core.ranking import OwnRanking, Ranking, to_label_space
from stage2_segmentation.branches import Seen
from stage2_segmentation.config import InferenceConfig
from stage2_segmentation.pixels import to_pixels

WINDOWS_AT_ONCE = 4
#: of the ranks of an image that are resized together: 256 MiB
SCORES_AT_ONCE = 2**26


class Network(Protocol):
    """Images f32 [B, 3, H, W] → what is seen in them → rank_logits f32 [B, κ, h, w], in cells of `cell` pixels."""

    @property
    def cell(self) -> int: ...

    def look(self, images: Tensor) -> Seen: ...

    def segment(self, seen: Seen, ranking: Ranking) -> Tensor: ...


@dataclass(frozen=True)
class Segmented:
    """One image, segmented. label_map: i64 [H, W].   ranking: of one image.

    label_scores: f32 [K] in [0, 1] of the network's label branch; None without one.
    """

    label_map: Tensor
    ranking: Ranking
    label_scores: Tensor | None = None


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
    if len(views(plan)) == 1:
        ranks = best_ranks(view_logits(network, first, ranking), size)
    else:
        ranks = rank_scores(network, image, ranking, plan, size=size, first=first).argmax(0)
    return Segmented(to_label_space(ranks[None], ranking)[0], ranking, label_scores)


def best_ranks(logits: Tensor, size: tuple[int, int], *, at_once: int = SCORES_AT_ONCE) -> Tensor:
    """The rank of each pixel, i64 [H, W]: arg-max of logits f32 [κ, h, w] after bilinear resizing to `size`.

    Some ranks are resized at a time, at most `at_once` scores, so that a large photograph among many labels does not
    need κ × H × W of them.
    """
    step = max(1, at_once // (size[0] * size[1]))
    best = ranks = None
    for start in range(0, len(logits), step):
        some = resized(logits[start : start + step], size)
        if best is None or ranks is None:
            best, ranks = some.max(0)
            continue
        height, rank = some.max(0)
        higher = height > best
        best = torch.where(higher, height, best)
        ranks = torch.where(higher, rank + start, ranks)
    assert ranks is not None
    return ranks


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if logits.shape[1:] == size:
        return logits
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


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
    places = list(corners(*view, window, plan.stride if plan.mode == "slide" else window))
    for start in range(0, len(places), WINDOWS_AT_ONCE):
        group = places[start : start + WINDOWS_AT_ONCE]
        pieces = torch.stack([image[:, top : top + height, left : left + width] for top, left in group])
        yield Look(view, group, (height, width), network.look(pieces))


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


def rank_scores(
    network: Network, image: Tensor, ranking: Ranking, plan: InferenceConfig, *,
    size: tuple[int, int], first: Iterable[Look] | None = None,
) -> Tensor:  # fmt: skip
    """Scores f32 [κ, H, W] of the ranks: logits of a single view, mean of the softmax of several.

    first: the looks at the first view, where they have been taken already.
    """
    seen_as = views(plan)
    total: Tensor | None = None
    for number, (scale, mirrored) in enumerate(seen_as):
        known = first if number == 0 else None
        seen = looks(network, image, plan, scale, mirrored) if known is None else known
        logits = view_logits(network, seen, ranking)
        logits = logits.flip(2) if mirrored else logits
        logits = resized(logits, size)
        if len(seen_as) == 1:
            return logits
        scores = logits.softmax(0).div_(len(seen_as))
        total = scores if total is None else total.add_(scores)
    assert total is not None
    return total


def view_logits(network: Network, seen: Iterable[Look], ranking: Ranking) -> Tensor:
    """f32 [κ, H, W] of a view: the mean over the windows of each pixel's logits."""
    total = count = None
    for look in seen:
        pieces = network.segment(look.seen, repeated(ranking, len(look.places))).float()
        pieces = to_pixels(pieces, look.size, network.cell)
        if look.size == look.view:
            return pieces[0]
        if total is None or count is None:
            total = pieces.new_zeros((ranking.kappa, *look.view))
            count = pieces.new_zeros(look.view)
        for (top, left), logits in zip(look.places, pieces, strict=True):
            here = (slice(top, top + look.size[0]), slice(left, left + look.size[1]))
            total[:, *here] += logits
            count[here] += 1
    assert total is not None and count is not None
    return total / count


def corners(height: int, width: int, window: int, stride: int) -> Iterator[tuple[int, int]]:
    """Top left corners of the windows, row by row: multiples of stride, the last one moved inside the image."""
    for top in starts(height, window, stride):
        for left in starts(width, window, stride):
            yield top, left


def starts(side: int, window: int, stride: int) -> list[int]:
    last = max(0, side - window)
    return [min(i * stride, last) for i in range(-(-last // stride) + 1)]


def repeated(ranking: Ranking, times: int) -> Ranking:
    """The ranking of one image for `times` pieces of it."""
    return Ranking(*(t.expand(times, -1) for t in (ranking.labels, ranking.scores, ranking.valid)))
