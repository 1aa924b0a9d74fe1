"""How sure a mean is: t intervals over seeds, and a paired bootstrap over the images of a split.

Legend: N images, K all labels, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]

RESAMPLES = 1000
#: of the draw of images; the same draw serves every scheme, which is what makes the bootstrap a paired one
DRAW = 20_220_304
CELLS_AT_ONCE = 2**22  # of a dense N x K table


@dataclass(frozen=True)
class ImageCounts:
    """Pixels of every label in every image, without the zeros.

    image, label: i64 [n], the places that are not all zero.   right, predicted, truth: i64 [n], pixels there.
    image_ids: N names.   num_classes: K.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    right: NDArray[np.int64]
    predicted: NDArray[np.int64]
    truth: NDArray[np.int64]
    image_ids: tuple[str, ...]
    num_classes: int

    @classmethod
    def read(cls, path: Path) -> ImageCounts:
        """From the images.npz of a measurement."""
        with np.load(path) as file:
            columns = {name: file[name].astype(np.int64) for name in ("image", "label", "right", "predicted", "truth")}
            return cls(**columns, image_ids=tuple(file["image_ids"].tolist()), num_classes=int(file["num_classes"]))

    def dense(self, column: NDArray[np.int64], labels: range) -> NDArray[np.float64]:
        """A column as a table f64 [N, len(labels)] of some consecutive labels."""
        inside = (self.label >= labels.start) & (self.label < labels.stop)
        table = np.zeros((len(self.image_ids), len(labels)))
        table[self.image[inside], self.label[inside] - labels.start] = column[inside]
        return table


def draws(images: int, resamples: int = RESAMPLES, seed: int = DRAW) -> NDArray[np.float64]:
    """How often each resample holds each image, f64 [R, N]: N draws with replacement."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), resamples).astype(np.float64)


def resampled_miou(counts: ImageCounts, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """mIoU f64 [R] of the images that each row of weights [R, N] holds.

    Pixels are summed over the images first, as for the mIoU of the split: a mean over the labels that have a pixel in
    the truth or in the prediction of that resample (NaN where none has).
    """
    total, labels = np.zeros(len(weights)), np.zeros(len(weights))
    step = max(1, CELLS_AT_ONCE // max(1, len(counts.image_ids)))
    for start in range(0, counts.num_classes, step):
        some = range(start, min(start + step, counts.num_classes))
        right, predicted, truth = (
            weights @ counts.dense(column, some) for column in (counts.right, counts.predicted, counts.truth)
        )
        union = predicted + truth - right
        total += np.divide(right, union, out=np.zeros_like(right), where=union > 0).sum(1)
        labels += (union > 0).sum(1)
    return np.divide(total, labels, out=np.full(len(weights), np.nan), where=labels > 0)


def interval_around(measured: float, resampled: NDArray[np.float64], level: float = 0.95) -> Interval:
    """The middle `level` of resampled values, moved so that their mean is what was measured.

    A resample holds two thirds of the images, and so not all labels: a mean over those that are there is off by what
    the missing ones would have added or taken away (Efron & Tibshirani 1993, chapter 10: the bootstrap's estimate of
    bias, which comes from the resampling here and not from the measurement). Among 2,000 labels in 400 images that
    shift is larger than the interval.
    """
    low, high = np.nanquantile(resampled - np.nanmean(resampled), [(1 - level) / 2, (1 + level) / 2])
    return measured + float(low), measured + float(high)


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Mean ± t · s / √n of n repeated runs (s: sample standard deviation); None for fewer than two."""
    count = len(values)
    if count < 2:
        return None
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    reach = t_quantile((1 + level) / 2, count - 1) * deviation / math.sqrt(count)
    return mean - reach, mean + reach


def t_quantile(share: float, freedom: int) -> float:
    """Where Student's distribution with so many degrees of freedom reaches `share`, 0.5 to below 1."""
    low, high = 0.0, 1.0
    while t_share(high, freedom) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_share(middle, freedom) < share else (low, middle)
    return high


def t_share(value: float, freedom: int) -> float:
    """Share of Student's distribution below a value of 0 or more: the finite sums for whole degrees of freedom
    (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(value / math.sqrt(freedom))
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for step in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * step / (step + 1)
    between = math.sin(angle) * total
    if odd:
        between = 2 / math.pi * (angle + between)
    return 0.5 + between / 2
