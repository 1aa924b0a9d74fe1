"""Differences in mIoU between two schemes, with what is known of their size.

Two intervals stand beside each difference, because two things vary: the images that a scheme is judged on (paired
bootstrap over the images of the split) and the random numbers that it was trained with (t interval over seeds). Pairs
are of the same seed and the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.benchmark.intervals import Interval, draws, interval_around, resampled_miou, t_interval
from pipelines.benchmark.records import Measured, Records


@dataclass(frozen=True)
class Difference:
    """mIoU of one scheme minus that of another, in 0..1, averaged over the seeds that both have.

    interval: over images, 95 %.   seeds_interval: over seeds, 95 %; None with one seed.
    """

    mean: float
    interval: Interval
    seeds_interval: Interval | None
    seeds: tuple[int, ...]

    def plain(self) -> dict[str, Any]:
        """As results.json holds it."""
        return {
            "mean": self.mean, "interval": list(self.interval), "seeds": list(self.seeds),
            "seeds_interval": None if self.seeds_interval is None else list(self.seeds_interval),
        }  # fmt: skip

    @property
    def is_above(self) -> bool:
        """Whether all that is known says more than zero."""
        return all(low > 0 for low, _ in self._known)

    @property
    def is_below(self) -> bool:
        return all(high < 0 for _, high in self._known)

    @property
    def _known(self) -> Sequence[Interval]:
        return [self.interval] if self.seeds_interval is None else [self.interval, self.seeds_interval]


class Comparison:
    """All schemes of a benchmark, resampled with the same draws of images."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.resampled: dict[tuple[str, int], NDArray[np.float64]] = {}

    def difference(self, scheme: str, other: str) -> Difference | None:
        """mIoU(scheme) - mIoU(other); None where they share no seed, or were not measured on the same images."""
        ours, theirs = ({found.seed: found for found in self.records.of(name)} for name in (scheme, other))
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            return None
        pairs = [(ours[seed], theirs[seed]) for seed in seeds]
        if any(found.counts.image_ids != self.image_ids for pair in pairs for found in pair):
            self.records.lacks(f"{scheme} against {other}: not measured on the same images")
            return None
        means = [float(a.values["mIoU"]) - float(b.values["mIoU"]) for a, b in pairs]
        spread = np.mean([self.draw(a) - self.draw(b) for a, b in pairs], axis=0)
        mean = float(np.mean(means))
        return Difference(mean, interval_around(mean, spread), t_interval(means), tuple(seeds))

    def draw(self, found: Measured) -> NDArray[np.float64]:
        """mIoU of one measurement in each resample, f64 [R]."""
        key = found.scheme, found.seed
        if key not in self.resampled:
            self.resampled[key] = resampled_miou(found.counts, self.weights)
        return self.resampled[key]

    @cached_property
    def image_ids(self) -> tuple[str, ...]:
        """The images of the first measurement, which the others are held against."""
        return self.records.measured[0].counts.image_ids

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        return draws(len(self.image_ids))
