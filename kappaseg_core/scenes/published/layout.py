"""What published sets have in common: folders of files that share a stem, lists of ids, tables of mask values."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes.flaws import MissingMask, UnknownValues
from kappaseg_core.scenes.images import label_map
from kappaseg_core.scenes.mask_values import UNKNOWN, VALUES
from kappaseg_core.scenes.published import Item

FEW = 5  # odd values of a mask that are named


def top_folder(source: Path, name: str, needs: str, download: str) -> Path:
    """The folder that holds the file or folder `needs`: `source`, or one below it that `name` leads to.

    name: where the archive unpacks to, like VOCdevkit/VOC2012; people give any folder on that way. Raises UserError.
    """
    parts = Path(name).parts
    below = (source.joinpath(*parts[first:]) for first in reversed(range(len(parts) + 1)))
    for folder in below:
        if (folder / needs).exists():
            return folder
    raise UserError(f"{source} holds no {needs} (nor {name}/{needs}); {download}")


def names(text: str) -> tuple[str, ...]:
    """Class names from a text in which commas part them."""
    return tuple(" ".join(name.split()) for name in text.split(","))


def stems(folder: Path, suffix: str) -> set[str]:
    """Names of the files that end in `suffix`, without it; not hidden ones. Empty where there is no such folder."""
    files = os.listdir(folder) if folder.is_dir() else []
    return {name.removesuffix(suffix) for name in files if name.endswith(suffix) and not name.startswith(".")}


def folders_in(*parents: Path) -> list[str]:
    """Names of the folders in any of the parents, sorted."""
    return sorted({path.name for parent in parents if parent.is_dir() for path in parent.iterdir() if path.is_dir()})


def pairs(split: str, photos: Path, masks: Path, *, photo: str = ".jpg", mask: str = ".png") -> list[Item]:
    """An item per stem that either folder holds, sorted: what lacks its partner is a flaw and no smaller set."""
    found = sorted(stems(photos, photo) | stems(masks, mask))
    return [Item(split, stem, photos / f"{stem}{photo}", masks / f"{stem}{mask}") for stem in found]


def listed(path: Path, download: str) -> list[str]:
    """The lines of a list, without blanks. Raises UserError where there is no such file."""
    if not path.exists():
        raise UserError(f"{path} does not exist; {download}")
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def numbered_names(path: Path) -> dict[int, str]:
    """Number → name of lines like "2: aeroplane"; empty where there is no such file."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    parts = (line.partition(":") for line in lines)
    return {int(number): name.strip() for number, _, name in parts if number.strip().isdigit()}


def id_table(ids: Mapping[int, int], ignored: Iterable[int]) -> np.ndarray:
    """Mask value → class id, IGNORE or UNKNOWN, i32 [65536]."""
    table = np.full(VALUES, UNKNOWN, np.int32)
    table[list(ids)] = list(ids.values())
    table[list(ignored)] = IGNORE
    return table


def stored_values(path: Path) -> np.ndarray:
    """The integers of a PNG or TIFF file [H, W]. Raises UserError, MissingMask."""
    return label_map(mask_bytes(path), f"mask {path}")


def mask_bytes(path: Path) -> bytes:
    """A file that label maps are made of. Raises UserError, MissingMask."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingMask(f"mask {path} does not exist; unpack the archive of the masks again") from None
    except OSError as error:
        raise UserError(f"mask {path} cannot be read: {(error.strerror or str(error)).lower()}") from None


def to_ids(values: np.ndarray, table: np.ndarray, path: Path) -> np.ndarray:
    """Class ids i32 [H, W] of stored values. Raises UnknownValues that names those without a meaning."""
    inside = (values >= 0) & (values < VALUES)
    ids = np.where(inside, table.take(np.where(inside, values, 0)), UNKNOWN)
    odd, pixels = np.unique(values[ids == UNKNOWN], return_counts=True)
    if len(odd):
        counts = zip(odd[:FEW].tolist(), pixels[:FEW].tolist(), strict=True)
        named = ", ".join(f"{value} ({count} pixel{'s' * (count > 1)})" for value, count in counts)
        meant = np.flatnonzero(table != UNKNOWN)
        raise UnknownValues(
            f"mask {path} holds value {named}, wanted those of the set, which lie in {meant[0]}..{meant[-1]}; "
            "unpack that file again, or see whether its folder belongs to this set"
        )
    return ids
