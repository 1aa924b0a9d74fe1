"""Label maps of whole images: whole, by sliding window, over several scales and mirrored.

Legend: κ ranks of the image's one ranking, H W pixels. Nothing here has an axis of all K labels: scores are averaged
and compared among κ ranks, and label ids are looked up last. (The release ranks every window and scale anew, scatters
into K channels filled with -100, and averages those.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from kappaseg_core.ranking import Ranking, to_label_space
from stage2_segmentation.pixels import to_pixels

WINDOWS_AT_ONCE = 4


class Network(Protocol):
    """Images f32 [B, 3, H, W] and their rankings → rank_logits f32 [B, κ, h, w], in cells of `cell` pixels."""

    @property
    def cell(self) -> int: ...

    def __call__(self, images: Tensor, ranking: Ranking) -> Tensor: ...


@dataclass(frozen=True)
class InferencePlan:
    """How the network is applied. window, stride: pixels, for mode "slide".

    scales: factors on the given image.   flip: each scale also mirrored, left to right.
    """

    mode: Literal["whole", "slide"] = "whole"
    window: int = 512
    stride: int = 512
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False


def label_map(
    network: Network, image: Tensor, ranking: Ranking, plan: InferencePlan, *, size: tuple[int, int]
) -> Tensor:
    """Label ids i64 [H, W] = `size` of one image f32 [3, H', W'], normalised, with its ranking (of one image)."""
    ranks = rank_scores(network, image, ranking, plan, size=size).argmax(0)
    return to_label_space(ranks[None], ranking)[0]


def rank_scores(
    network: Network, image: Tensor, ranking: Ranking, plan: InferencePlan, *, size: tuple[int, int]
) -> Tensor:
    """Scores f32 [κ, H, W] of the ranks: logits of a single view, mean of the softmax of several."""
    views = [(scale, mirrored) for scale in plan.scales for mirrored in (False, True)[: 1 + plan.flip]]
    total: Tensor | None = None
    for scale, mirrored in views:
        scores = view_logits(network, image, ranking, plan, scale, mirrored, size)
        if len(views) == 1:
            return scores
        scores = scores.softmax(0).div_(len(views))
        total = scores if total is None else total.add_(scores)
    assert total is not None
    return total


def view_logits(
    network: Network, image: Tensor, ranking: Ranking, plan: InferencePlan, scale: float, mirrored: bool,
    size: tuple[int, int],
) -> Tensor:  # fmt: skip
    """Logits f32 [κ, *size] from the image at one scale, mirrored or not (mirrored back)."""
    if scale != 1.0:
        wanted = [max(1, round(side * scale)) for side in image.shape[1:]]
        image = F.interpolate(image[None], wanted, mode="bilinear", align_corners=False)[0]
    image = image.flip(2) if mirrored else image
    logits = slide(network, image, ranking, plan.window, plan.stride) if plan.mode == "slide" else whole(
        network, image[None], ranking
    )[0]  # fmt: skip
    logits = logits.flip(2) if mirrored else logits
    if logits.shape[1:] != size:
        logits = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    return logits


def whole(network: Network, images: Tensor, ranking: Ranking) -> Tensor:
    """Images f32 [B, 3, H, W] → pixel logits f32 [B, κ, H, W] in one pass."""
    return to_pixels(network(images, ranking).float(), (images.shape[2], images.shape[3]), network.cell)


def slide(network: Network, image: Tensor, ranking: Ranking, window: int, stride: int) -> Tensor:
    """Image f32 [3, H, W] → mean f32 [κ, H, W] over the windows of each pixel's logits."""
    height, width = (min(window, side) for side in image.shape[1:])
    total = image.new_zeros((ranking.kappa, *image.shape[1:]), dtype=torch.float32)
    count = image.new_zeros(image.shape[1:], dtype=torch.float32)
    places = list(corners(image.shape[1], image.shape[2], window, stride))
    for start in range(0, len(places), WINDOWS_AT_ONCE):
        group = places[start : start + WINDOWS_AT_ONCE]
        pieces = torch.stack([image[:, top : top + height, left : left + width] for top, left in group])
        for (top, left), logits in zip(group, whole(network, pieces, repeated(ranking, len(group))), strict=True):
            total[:, top : top + height, left : left + width] += logits
            count[top : top + height, left : left + width] += 1
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
