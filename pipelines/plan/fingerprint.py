"""What a data set is like, as far as a plan depends on it. Legend: N images, K labels, κ kept labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaseg_core.config import DataConfig
from kappaseg_core.errors import UserError
from kappaseg_core.files import write_text
from kappaseg_core.scenes import open_scenes
from kappaseg_core.scenes.in_parallel import cores
from pipelines.plan.scan import MaskFacts, opened, sample, scan, state_of
from pipelines.tables import show_table

FILE = "fingerprint.json"
SHARES = (0.99, 0.999)
FEW = 64  # masks that are read sooner than another process is started


@dataclass(frozen=True)
class Fingerprint:
    """A data set.

    classes: K.   train, val: images.   scanned: training masks that were read, a sample where there are more.
    median_size, largest_size: height and width in pixels; the largest is that of the most pixels.
    labels_mean, labels_p99, labels_most: of the labels of an image.   unlabelled: share of the pixels.
    never: labels of the vocabulary that no mask read shows.   common: share of the images that the most frequent label
    is in; median: that the label in the middle is in.
    kappa_oracle: the smallest κ at which 99 and 99.9 % of the labelled pixels lie in the κ largest labels of their
    image, which is the best that a ranking can do.   kappa_frequency: the same where every image gets the κ labels that
    most images show, which a ranking does that looks at none.   state: of the files that were read.
    """

    classes: int
    train: int
    val: int
    scanned: int
    median_size: tuple[int, int]
    largest_size: tuple[int, int]
    labels_mean: float
    labels_p99: float
    labels_most: int
    unlabelled: float
    never: int
    common: float
    median: float
    kappa_oracle: tuple[int, int]
    kappa_frequency: tuple[int, int]
    state: str

    def show(self, title: str) -> None:
        """Print it as a short table."""
        read = "all masks read" if self.scanned == self.train else f"{self.scanned:,} masks read, a sample"
        height, width = self.median_size
        tall, wide = self.largest_size
        rows = {
            "images": f"{self.train:,} to train ({read}), {self.val:,} to validate",
            "sizes": f"median {height} x {width}, largest {tall} x {wide} (height x width)",
            "labels": f"{self.classes:,}, of which {self.never:,} were not seen",
            "labels of an image": f"{self.labels_mean:.1f} on average, at most {self.labels_p99:.0f} in 99 % of the "
            f"images and {self.labels_most} in all",
            "images of a label": f"{100 * self.common:.1f} % for the most frequent, {100 * self.median:.2f} % for the "
            "one in the middle",
            "pixels without a label": f"{100 * self.unlabelled:.1f} %",
            "κ for 99 and 99.9 % of the pixels": f"{self.kappa_oracle[0]} and {self.kappa_oracle[1]}, largest labels "
            f"of each image; {self.kappa_frequency[0]} and {self.kappa_frequency[1]}, most frequent labels for all",
        }  # fmt: skip
        show_table(title, ["", ""], [[name, value] for name, value in rows.items()])

    def write(self, folder: Path) -> None:
        write_text(folder / FILE, json.dumps(asdict(self), indent=1) + "\n")


def fingerprint_of(data: DataConfig, folder: Path, images: int | None) -> Fingerprint:
    """Of a data set, from `folder` where the same masks were read before.

    images: masks to read, drawn by name; None = all.
    """
    train, val = opened(data), open_scenes(data, data.val)
    indices = sample(train, images)
    state = state_of(data, train, indices)
    known = read_fingerprint(folder)
    if known is not None and known.state == state and known.val == len(val):
        return known
    facts = scan(data, indices, min(cores(), 1 + len(indices) // FEW))
    return summed_up(facts, len(train.class_names), train=len(train), val=len(val), state=state)


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """The one that was written there; None where there is none that this version wrote."""
    try:
        values: dict[str, Any] = json.loads((folder / FILE).read_text("utf-8"))
        pairs = ("median_size", "largest_size", "kappa_oracle", "kappa_frequency")
        return Fingerprint(**{**values, **{name: tuple(values[name]) for name in pairs}})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def summed_up(facts: Sequence[MaskFacts], classes: int, *, train: int, val: int, state: str = "") -> Fingerprint:
    """The fingerprint of a split whose masks are like these. Raises UserError where no pixel has a label."""
    labels = np.array([len(mask.labels) for mask in facts])
    by_label, images_with = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    by_rank = np.zeros(max(1, labels.max()), np.int64)
    for mask in facts:
        by_label[mask.labels] += mask.pixels
        images_with[mask.labels] += 1
        by_rank[: len(mask.labels)] += np.sort(mask.pixels)[::-1]
    if not by_label.any():
        raise UserError(f"{len(facts)} masks hold no labelled pixel; see data.options.ignore and kappaseg data check")
    sizes = np.array([mask.shape for mask in facts])
    pixels = int(sizes.prod(1).sum())
    seen = np.sort(images_with[images_with > 0])[::-1]
    return Fingerprint(
        classes=classes, train=train, val=val, scanned=len(facts),
        median_size=pair(np.median(sizes, axis=0)), largest_size=pair(sizes[sizes.prod(1).argmax()]),
        labels_mean=round(float(labels.mean()), 3), labels_p99=float(np.percentile(labels, 99)),
        labels_most=int(labels.max()), unlabelled=round(1 - int(by_label.sum()) / pixels, 6),
        never=int((images_with == 0).sum()), common=float(seen[0]) / len(facts),
        median=float(seen[len(seen) // 2]) / len(facts),
        kappa_oracle=kappas(by_rank), kappa_frequency=kappas(by_label[np.argsort(-images_with, kind="stable")]),
        state=state,
    )  # fmt: skip


def kappas(pixels: NDArray[np.int64]) -> tuple[int, int]:
    """The least κ at which the first κ of these hold 99 and 99.9 % of the pixels. pixels: i64 [ranks]."""
    covered = np.cumsum(pixels)
    first, second = (int(np.argmax(covered >= share * covered[-1])) + 1 for share in SHARES)
    return first, second


def pair(values: NDArray[Any]) -> tuple[int, int]:
    return int(values[0]), int(values[1])
