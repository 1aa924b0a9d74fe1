"""What is in a cache, whether it is sound, and how good its rankings are.

Legend: n images, K all labels, k ranks stored, κ ranks kept; T_i(κ) the first κ labels of image i, G_i the labels that
are there, p_ic pixels of class c in image i. Coverage is what a segmentation network that chooses among T_i can reach:
pixel accuracy ≤ micro coverage, IoU_c ≤ coverage of class c, and so mIoU ≤ mean class coverage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from label_cache.errors import CacheError
from label_cache.index import INDEX, expected_rows, stored_index
from label_cache.parts import read_part
from label_cache.reader import LabelCache
from label_cache.rows import Columns, faults
from label_cache.schema import CacheKey

_TABLE_CELLS = 1 << 24  # 64 MiB of look-up table at a time


@dataclass(frozen=True)
class CacheSummary:
    """rows: split → images.      sources: split → source → images.      bytes: of all parts, without the index."""

    key: CacheKey
    fingerprint: str
    parts: int
    rows: dict[str, int]
    sources: dict[str, dict[str, int]]
    bytes: int


@dataclass(frozen=True)
class Recall:
    """Share of the labels present that are among the first κ, for each of `kappas`.

    micro: Σ_i |G_i ∩ T_i| / Σ_i |G_i|.      image_mean: mean over images with labels of |G_i ∩ T_i| / |G_i|.
    class_macro: mean over labels that occur of the share of their images in which they are kept.
    """

    kappas: tuple[int, ...]
    micro: tuple[float, ...]
    image_mean: tuple[float, ...]
    class_macro: tuple[float, ...]


@dataclass(frozen=True)
class Coverage:
    """Share of the labelled pixels whose class is among the first κ, for each of `kappas`.

    micro: Σ_ic p_ic [c ∈ T_i] / Σ_ic p_ic.
    class_mean: mean over classes with pixels of Σ_i p_ic [c ∈ T_i] / Σ_i p_ic.      classes: how many those are.
    """

    kappas: tuple[int, ...]
    micro: tuple[float, ...]
    class_mean: tuple[float, ...]
    classes: int


def summary(cache: LabelCache) -> CacheSummary:
    """What a cache holds. Reads and verifies every part."""
    columns = {split: cache.read_split(split) for split in cache.splits}
    return CacheSummary(
        key=cache.key,
        fingerprint=cache.key.fingerprint(),
        parts=len(cache.manifest.parts),
        rows={split: len(rows) for split, rows in columns.items()},
        sources={split: dict(sorted(Counter(rows.source.tolist()).items())) for split, rows in columns.items()},
        bytes=sum(part.bytes for part in cache.manifest.parts),
    )


def check(cache: LabelCache) -> list[str]:
    """Everything that is wrong with a cache, one line each; empty for a sound one.

    Every part: size, sha256, page checksums, key, rows (rows.faults). All parts: no image twice. The stored index, if
    it is one that look-ups would use: every row of it against the parts.
    """
    problems: list[str] = []
    cache.require_unchanged()
    try:
        index = stored_index(cache.path, cache.manifest, digest=cache.digest)
    except CacheError:
        index = None  # a part is damaged; it is named below
    seen: dict[str, str] = {}
    start = 0
    for part in cache.manifest.parts:
        try:
            columns = read_part(cache.path, part, key=cache.key)
        except CacheError as error:
            problems.append(str(error))
        else:
            problems += [f"part {part.name} of cache {cache.path}: {fault}" for fault in faults(columns)]
            twice = [name for name in columns.image_ids if seen.setdefault(name, part.name) != part.name]
            problems += [f"image id {name!r} is in the parts {seen[name]} and {part.name}" for name in twice]
            if index is not None and not expected_rows(index, columns, start):
                problems.append(f"the index disagrees with part {part.name}; delete {cache.path / INDEX}")
        start += part.rows
    return problems


def recall_at(columns: Columns, kappas: Sequence[int]) -> Recall:
    """Label recall of a split at each κ (Recall says how). Raises CacheError without truth or for κ above k."""
    ranks, image = _truth_ranks(columns, kappas), _image_of_truth(columns)
    per_image = 1.0 / np.bincount(image)[image]
    per_label = 1.0 / np.bincount(columns.truth)[columns.truth]
    return Recall(
        tuple(kappas),
        _shares(ranks, np.ones(len(ranks)), kappas),
        _shares(ranks, per_image, kappas),
        _shares(ranks, per_label, kappas),
    )


def coverage_at(columns: Columns, kappas: Sequence[int]) -> Coverage:
    """Pixel coverage of a split at each κ (Coverage says how). Raises CacheError without pixels or for κ above k."""
    ranks, pixels = _truth_ranks(columns, kappas), _pixels(columns)
    of_class = np.bincount(columns.truth, pixels)
    return Coverage(
        tuple(kappas),
        _shares(ranks, pixels, kappas),
        _shares(ranks, pixels / of_class[columns.truth], kappas),
        int((of_class > 0).sum()),
    )


def kappa_for_coverage(columns: Columns, share: float = 0.99) -> int | None:
    """The smallest κ whose micro coverage is at least `share`; None where all stored ranks do not reach it."""
    kept = np.array(coverage_at(columns, range(1, columns.k + 1)).micro)
    enough = np.flatnonzero(kept >= share)
    return int(enough[0]) + 1 if len(enough) else None


def frequency_prior(training: Columns, columns: Columns) -> Columns:
    """`columns` with one fixed ranking for every image: all K labels by how many training images contain them.

    Equal counts in order of label id; the score is the share of training images. This is the baseline that a ranking
    has to beat; its recall, coverage and κ come from the same functions. The [n, K] arrays are views of one row.
    """
    if not len(training.truth):
        raise _no_truth(training)
    share = np.bincount(training.truth, minlength=columns.num_classes) / len(training)
    labels = np.argsort(-share, kind="stable").astype(columns.labels.dtype)
    shape = (len(columns), columns.num_classes)
    scores = share[labels].astype(np.float32)
    return replace(columns, labels=np.broadcast_to(labels, shape), scores=np.broadcast_to(scores, shape))


def _truth_ranks(columns: Columns, kappas: Sequence[int]) -> NDArray[Any]:
    """Rank (from 0) of every true label in the ranking of its image [m]; k where the ranking missed it."""
    if not len(columns.truth):
        raise _no_truth(columns)
    bad = [kappa for kappa in kappas if not 1 <= kappa <= columns.k]
    if bad:
        raise CacheError(f"kappa = {bad[0]}, but {columns.k} ranks per image are stored; ask for 1 to {columns.k}")
    if columns.labels.strides[0] == 0:  # one ranking for all images, as `frequency_prior` makes it
        return _rank_table(columns.labels[:1], columns.num_classes)[0, columns.truth]
    image, ranks = _image_of_truth(columns), np.empty(len(columns.truth), np.int64)
    step = max(1, _TABLE_CELLS // columns.num_classes)
    for start in range(0, len(columns), step):
        labels = columns.labels[start : start + step]
        table = _rank_table(labels, columns.num_classes)
        here = slice(columns.truth_offsets[start], columns.truth_offsets[start + len(labels)])
        ranks[here] = table[image[here] - start, columns.truth[here]]
    return ranks


def _rank_table(labels: NDArray[Any], num_classes: int) -> NDArray[np.int32]:
    """Label id → rank for some images, i32 [n, K]; k for labels that are not among the k."""
    k = labels.shape[1]
    table = np.full((len(labels), num_classes), k, np.int32)
    np.put_along_axis(table, labels.astype(np.int64), np.arange(k, dtype=np.int32)[None], axis=1)
    return table


def _image_of_truth(columns: Columns) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(columns)), np.diff(columns.truth_offsets))


def _pixels(columns: Columns) -> NDArray[np.float64]:
    if columns.truth_pixels is None:
        raise CacheError(f"split {columns.split} stores labels without pixel counts; rank a split that has masks")
    return columns.truth_pixels.astype(np.float64)


def _no_truth(columns: Columns) -> CacheError:
    return CacheError(f"split {columns.split} stores no true labels to compare with; rank a split that has masks")


def _shares(ranks: NDArray[Any], weights: NDArray[np.float64], kappas: Sequence[int]) -> tuple[float, ...]:
    """Share of the weight that lies at ranks below each κ."""
    kept = np.cumsum(np.bincount(ranks, weights, minlength=max(kappas, default=0)))
    return tuple(float(kept[kappa - 1] / kept[-1]) for kappa in kappas)
