"""Pixels of each label in each image: the truth that rankings are measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaseg_core.progress import Meter
from kappaseg_core.seeding import seed_of
from kappaseg_core.structures import SceneSet


def label_counts(scenes: SceneSet, indices: Sequence[int] | None = None) -> NDArray[np.int32]:
    """Pixels per label, i32 [N, K], for all scenes or those at `indices`; IGNORE pixels are not counted."""
    chosen = range(len(scenes)) if indices is None else indices
    counts = np.zeros((len(chosen), len(scenes.class_names)), np.int32)
    with Meter(f"reading the masks of {scenes.split}", len(chosen), unit="image") as meter:
        for row, index in enumerate(chosen):
            mask = scenes[index].mask
            counts[row] = np.bincount(mask[mask >= 0].ravel(), minlength=counts.shape[1])
            meter.advance()
    return counts


def runs(mask: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The labels [N] of a mask [H, W] row by row, each once for all pixels that follow one another, and how many."""
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    return flat[ends - 1], np.diff(ends, prepend=0)


def folds_of(image_ids: Sequence[str], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """The fold 0..folds-1 of each image: equal sizes, decided by the ids alone (not by their order)."""
    order = sorted(range(len(image_ids)), key=lambda i: (seed_of(seed, "fold", image_ids[i]), image_ids[i]))
    fold = np.empty(len(image_ids), np.int64)
    fold[order] = np.arange(len(image_ids)) % folds
    return fold
