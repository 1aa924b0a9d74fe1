"""A few drawn images in the exact layout of a published set: what each module of `miniatures` makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Miniature:
    """A source folder, and what has to come out of it.

    splits: split → image id → label map, rows of class ids, -1 = no label.   photos: image id → file.
    names: some class ids and their names.   spoil: puts a class that the set does not have into the label map of one
    image, and gives texts that the line about it has to hold.
    """

    set: str
    source: Path
    splits: Mapping[str, Mapping[str, Sequence[Sequence[int]]]]
    photos: Mapping[str, Path]
    names: Mapping[int, str]
    spoil: Callable[[], Sequence[str]]
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        return {split: len(maps) for split, maps in self.splits.items()}

    def words(self, to: Path, *more: str) -> list[str]:
        """The command that prepares it in this process."""
        chosen = [word for name, value in self.options.items() for word in (f"--options.{name}", value)]
        folders = ["--source", str(self.source), "--to", str(to)]
        return ["data", "prepare", self.set, *folders, "--workers", "1", *chosen, *more]


def draw_photo(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    """A colourful photo of (height, width), in the format of the ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(colours).save(path)
    return path


def draw_mask(
    path: Path, rows: Sequence[Sequence[int]], *, bits: int = 8, palette: Sequence[int] | None = None
) -> Path:
    """A mask file of these values; with a palette it is an indexed picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.array(rows, {8: np.uint8, 16: np.uint16}[bits]))
    if palette is not None:
        picture.putpalette(palette)
    picture.save(path)
    return path
