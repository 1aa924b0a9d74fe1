"""A few drawn images in the exact layout of a published set: what each module of `miniatures` makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat

#: split → image id → label map
Splits = Mapping[str, Mapping[str, Sequence[Sequence[int]]]]


@dataclass(frozen=True)
class Miniature:
    """A source folder, and what has to come out of it.

    splits: split → image id → label map, rows of class ids, -1 = no label.   photos: image id → file.
    names: some class ids and their names.   spoil: puts a class that the set does not have into the label map of one
    image, and gives texts that the line about it has to hold.   instances: as splits, numbers of objects, -1 = crowd.
    """

    set: str
    source: Path
    splits: Splits
    photos: Mapping[str, Path]
    names: Mapping[int, str]
    spoil: Callable[[], Sequence[str]]
    options: Mapping[str, str] = field(default_factory=dict)
    instances: Splits | None = None

    @property
    def counts(self) -> dict[str, int]:
        return {split: len(maps) for split, maps in self.splits.items()}

    def words(self, to: Path, *more: str) -> list[str]:
        """The command that prepares it in this process."""
        chosen = [word for name, value in self.options.items() for word in (f"--options.{name}", value)]
        folders = ["--source", str(self.source), "--to", str(to)]
        return ["data", "prepare", self.set, *folders, "--workers", "1", *chosen, *more]


def train_and_val(image_ids: Sequence[str], maps: Sequence[Sequence[Sequence[int]]]) -> Splits:
    """Splits of which the last image is for validation."""
    *train, val = zip(image_ids, maps, strict=True)
    return {"train": dict(train), "val": dict([val])}


def write_list(path: Path, image_ids: Sequence[str]) -> None:
    """A file of ids, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{image_id}\n" for image_id in image_ids))


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


def draw_matrix(path: Path, variable: str, values: np.ndarray, *, version: int = 5) -> Path:
    """A MATLAB file: version 5, or 7 = the HDF5 of version 7.3, which lists columns first, below a header of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if version == 5:
        savemat(path, {variable: values, "captions": "a tree"}, do_compression=True)
        return path
    with h5py.File(path, "w", userblock_size=512) as file:
        file[variable] = values.T
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116))
    return path
