"""The rows of a cache as arrays, and what makes them valid.

Legend: n images, K all labels, k ranks stored per image, m labels present in all n images together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from label_cache.errors import CacheError

#: How the classifier that ranked an image relates to it: never trained on its split; trained on it; trained on the
#: other folds of its split. In alphabetical order: the position is the stored code.
SOURCES = ("held-out", "in-sample", "out-of-fold")
_SOURCE_NAMES = np.array(SOURCES)


@dataclass(frozen=True)
class Columns:
    """Rows of one split, sorted by image id within each part. Arrays may be read-only views.

    labels: i16 [n, k] (i32 where K > 32767), no id twice in a row.
    scores: f32 [n, k] in [0, 1] that float16 can hold exactly, descending; equal scores in order of label id.
    source: text [n], one of SOURCES.
    truth: labels that are there, flat [m], ascending per image; empty where unknown.
    truth_offsets: i64 [n + 1]; the labels of image i are truth[truth_offsets[i]:truth_offsets[i + 1]].
    truth_pixels: i32 [m], pixels of each of them; None where only their presence is known.
    """

    split: str
    image_ids: tuple[str, ...]
    labels: NDArray[Any]
    scores: NDArray[np.float32]
    source: NDArray[np.str_]
    truth: NDArray[Any]
    truth_offsets: NDArray[np.int64]
    truth_pixels: NDArray[np.int32] | None
    num_classes: int

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def k(self) -> int:
        return self.labels.shape[1]


def label_type(num_classes: int) -> type[np.int16] | type[np.int32]:
    """The integer type that label ids are stored in."""
    return np.int32 if num_classes > 32767 else np.int16


def source_codes(names: NDArray[np.str_]) -> NDArray[np.int8]:
    """Positions in SOURCES, i8 [n]."""
    return np.searchsorted(_SOURCE_NAMES, names).astype(np.int8)


def source_names(codes: NDArray[np.int8]) -> NDArray[np.str_]:
    """Texts of SOURCES for their positions [n]."""
    return _SOURCE_NAMES.take(codes)


def arrange(
    split: str,
    ids: Sequence[str],
    *,
    labels: ArrayLike,
    scores: ArrayLike,
    source: str | Sequence[str],
    truth: Sequence[ArrayLike] | None,
    truth_pixels: Sequence[ArrayLike] | None,
    num_classes: int,
) -> Columns:
    """Rows in the one form in which they are stored, from rows in any order.

    Scores are rounded to float16 (relative step 2⁻¹¹: below what a classifier means), and only then are the ranks
    ordered. So what is stored is descending with ties by label id, and does not depend on rounding errors of batch
    size or device that are smaller than that step. Raises CacheError naming the image whose row is not valid.
    """
    order = _id_order(ids)
    ranked, rounded = _ranked(ids, np.asarray(labels), np.asarray(scores), num_classes)
    sources = np.broadcast_to(np.asarray(source, dtype=np.str_), (len(ids),))
    _require(np.isin(sources, _SOURCE_NAMES), ids, f"source is none of {', '.join(SOURCES)}")
    flat, offsets, pixels = _truth(ids, order, truth, truth_pixels, num_classes)
    return Columns(
        split=split,
        image_ids=tuple(ids[i] for i in order),
        labels=ranked[order].astype(label_type(num_classes)),
        scores=rounded[order],
        source=sources[order].astype(_SOURCE_NAMES.dtype),
        truth=flat.astype(label_type(num_classes)),
        truth_offsets=offsets,
        truth_pixels=pixels,
        num_classes=num_classes,
    )


def concatenate(pieces: Sequence[Columns]) -> Columns:
    """The rows of several parts of one split, one after the other; a single part is handed on without a copy."""
    if len(pieces) == 1:
        return pieces[0]
    lengths = np.concatenate([np.diff(p.truth_offsets) for p in pieces])
    pixels = [p.truth_pixels for p in pieces if p.truth_pixels is not None]
    return Columns(
        split=pieces[0].split,
        image_ids=tuple(i for p in pieces for i in p.image_ids),
        labels=np.concatenate([p.labels for p in pieces]),
        scores=np.concatenate([p.scores for p in pieces]),
        source=np.concatenate([p.source for p in pieces]),
        truth=np.concatenate([p.truth for p in pieces]),
        truth_offsets=_offsets(lengths),
        truth_pixels=np.concatenate(pixels) if len(pixels) == len(pieces) else None,
        num_classes=pieces[0].num_classes,
    )


def faults(columns: Columns) -> list[str]:
    """What is wrong with stored rows, one phrase per broken rule; empty for rows that `arrange` made."""
    ids, labels, scores = columns.image_ids, columns.labels, columns.scores
    falls = scores[:, :-1] > scores[:, 1:]
    ties = (scores[:, :-1] == scores[:, 1:]) & (labels[:, :-1] < labels[:, 1:])
    image = np.repeat(np.arange(len(ids)), np.diff(columns.truth_offsets))
    ascending = (np.diff(image) > 0) | (np.diff(columns.truth.astype(np.int64)) > 0)
    rules = {
        "image ids are not sorted and unique": all(a < b for a, b in itertools.pairwise(ids)),
        f"a label id is outside 0..{columns.num_classes - 1}": _inside(labels, columns.num_classes).all(),
        "a label stands twice in one row": not _repeated(labels).any(),
        "scores are not numbers from 0 to 1": ((scores >= 0) & (scores <= 1)).all(),
        "scores hold more than float16 precision": (scores == _float16(scores)).all(),
        "scores do not descend with ties in order of label id": (falls | ties).all(),
        "a source is unknown": np.isin(columns.source, _SOURCE_NAMES).all(),
        f"a true label is outside 0..{columns.num_classes - 1}": _inside(columns.truth, columns.num_classes).all(),
        "true labels of an image are not ascending": ascending.all(),
        "a true label has no pixels": columns.truth_pixels is None or (columns.truth_pixels > 0).all(),
    }
    return [fault for fault, holds in rules.items() if not holds]


def _id_order(ids: Sequence[str]) -> list[int]:
    """Positions that sort the ids. Raises CacheError for an id that is empty, no text, or there twice."""
    if not ids:
        raise CacheError("a part needs at least one image; leave out empty parts")
    for image_id in ids:
        if not isinstance(image_id, str) or not image_id or not _encodable(image_id):
            raise CacheError(f"image id {image_id!r} is no text that UTF-8 can hold; rename the image")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    for a, b in itertools.pairwise(order):
        if ids[a] == ids[b]:
            raise CacheError(f"image id {ids[a]!r} stands twice in one part; every image is ranked once")
    return order


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _ranked(
    ids: Sequence[str], labels: NDArray[Any], scores: NDArray[Any], num_classes: int
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Labels and rounded scores, each row in the order that is stored."""
    if labels.ndim != 2 or labels.shape != scores.shape or len(labels) != len(ids):
        raise CacheError(
            f"labels {list(labels.shape)} and scores {list(scores.shape)} for {len(ids)} images; wanted [n, k] for both"
        )
    if labels.dtype.kind not in "iu":
        raise CacheError(f"label ids are {labels.dtype}; wanted whole numbers")
    _require(np.all(_inside(labels, num_classes), axis=1), ids, f"a label id is outside 0..{num_classes - 1}")
    _require(~_repeated(labels), ids, "a label stands twice")
    _require(np.all((scores >= 0) & (scores <= 1), axis=1), ids, "a score is no number from 0 to 1")
    rounded = _float16(scores)
    ranks = np.lexsort((labels, -rounded), axis=-1)
    return np.take_along_axis(labels, ranks, 1), np.take_along_axis(rounded, ranks, 1)


def _truth(
    ids: Sequence[str],
    order: Sequence[int],
    truth: Sequence[ArrayLike] | None,
    truth_pixels: Sequence[ArrayLike] | None,
    num_classes: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32] | None]:
    """Labels present (flat, by image in the stored order, ascending), offsets, pixels."""
    if truth is None:
        return np.zeros(0, np.int64), np.zeros(len(ids) + 1, np.int64), None
    flat, lengths = _flatten(truth)
    pixels, pixel_lengths = (np.ones_like(flat), lengths) if truth_pixels is None else _flatten(truth_pixels)
    if len(lengths) != len(ids) or not np.array_equal(lengths, pixel_lengths):
        raise CacheError(f"truth for {len(lengths)} of {len(ids)} images, or not one pixel count per true label")
    place = np.empty(len(ids), np.int64)
    place[list(order)] = np.arange(len(ids))
    image = np.repeat(np.arange(len(ids)), lengths)
    _require_flat(_inside(flat, num_classes), ids, image, f"a true label is outside 0..{num_classes - 1}")
    _require_flat((pixels > 0) & (pixels < 2**31), ids, image, "a true label has no pixels or over 2^31")
    sequence = np.lexsort((flat, place[image]))
    flat, pixels, image = flat[sequence], pixels[sequence], image[sequence]
    again = np.zeros(len(flat), bool)
    again[1:] = (flat[1:] == flat[:-1]) & (image[1:] == image[:-1])
    _require_flat(~again, ids, image, "a true label stands twice")
    counted = None if truth_pixels is None else pixels.astype(np.int32)
    return flat, _offsets(lengths[list(order)]), counted


def _flatten(lists: Sequence[ArrayLike]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    arrays = [np.asarray(item, dtype=np.int64).reshape(-1) for item in lists]
    return np.concatenate([*arrays, np.zeros(0, np.int64)]), np.array([len(a) for a in arrays], dtype=np.int64)


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _float16(scores: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what float16 cannot hold differs from what it came from, and is found by that
        return scores.astype(np.float16).astype(np.float32) + np.float32(0)  # + 0 turns -0 into 0


def _inside(labels: NDArray[Any], num_classes: int) -> NDArray[np.bool_]:
    return (labels >= 0) & (labels < num_classes)


def _repeated(labels: NDArray[Any]) -> NDArray[np.bool_]:
    ordered = np.sort(labels, axis=1)
    return np.any(ordered[:, 1:] == ordered[:, :-1], axis=1)


def _require(good: NDArray[np.bool_], ids: Sequence[str], fault: str) -> None:
    if not good.all():
        raise CacheError(f"row of image {ids[int(np.argmin(good))]!r}: {fault}; the ranking that made it is wrong")


def _require_flat(good: NDArray[np.bool_], ids: Sequence[str], image: NDArray[np.int64], fault: str) -> None:
    if not good.all():
        raise CacheError(f"row of image {ids[int(image[np.argmin(good)])]!r}: {fault}; check masks and class list")
