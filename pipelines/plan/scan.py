"""The masks of a training split, each read once, by several processes: what a plan needs to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kappaseg_core.config import DataConfig, fingerprint, to_plain
from kappaseg_core.progress import Meter
from kappaseg_core.scenes import open_scenes
from kappaseg_core.scenes.in_parallel import in_parallel
from kappaseg_core.seeding import seed_of
from kappaseg_core.structures import SceneSet

#: the split that this process has open, by the settings it was opened with: opening it lists a folder
OPENED: dict[str, SceneSet] = {}


@dataclass(frozen=True)
class MaskFacts:
    """One mask.   shape: height and width.   labels, pixels: its labels, ascending, and how many pixels each has."""

    shape: tuple[int, int]
    labels: NDArray[np.int64]
    pixels: NDArray[np.int64]


def scan(data: DataConfig, indices: Sequence[int], workers: int) -> list[MaskFacts]:
    """Facts of the training masks at `indices`. Raises UserError for a mask that is missing or cannot be read."""
    found = []
    with Meter("reading masks", len(indices), unit="mask") as meter:
        for facts in in_parallel(partial(facts_of, data), indices, workers):
            found.append(facts)
            meter.advance()
    return found


def facts_of(data: DataConfig, index: int) -> MaskFacts:
    scenes = opened(data)
    mask: NDArray[np.int32] = scenes.mask(index) if hasattr(scenes, "mask") else scenes[index].mask
    pixels = np.bincount(mask[mask >= 0].ravel())
    labels = np.flatnonzero(pixels)
    return MaskFacts((mask.shape[0], mask.shape[1]), labels, pixels[labels])


def opened(data: DataConfig) -> SceneSet:
    """The training split, opened once by each process."""
    key = fingerprint(data)
    if key not in OPENED:
        OPENED.clear()
        OPENED[key] = open_scenes(data, data.train)
    return OPENED[key]


def sample(scenes: SceneSet, images: int | None) -> list[int]:
    """Indices of the masks to read: all, or that many, drawn by the names of the images."""
    if images is None or images >= len(scenes):
        return list(range(len(scenes)))
    order = sorted(range(len(scenes)), key=lambda index: seed_of("plan", scenes.image_ids[index]))
    return sorted(order[:images])


def state_of(data: DataConfig, scenes: SceneSet, indices: Sequence[int]) -> str:
    """sha256 of what a scan depends on, without reading masks: settings, names, and the sizes and times of files."""
    root = Path(data.root)
    if hasattr(scenes, "mask_path"):
        files = [scenes.mask_path(index) for index in indices]
    else:
        files = [root] if data.root and root.is_file() else []
    there = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists()]
    return fingerprint([to_plain(data), scenes.class_names, [scenes.image_ids[index] for index in indices], there])
