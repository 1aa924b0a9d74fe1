"""The index of ADE20K's release: which images there are, and the names of the categories."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.published.plain_pickle import read_plain_pickle

PICKLE, JSON = "index_ade20k.pkl", "index_ade20k.json"
COLUMNS = ("folder", "filename", "objectnames")
CONVERT = (
    f'on a machine where you trust it, write {JSON} beside it: python -c "import json, pickle; '
    f"from pathlib import Path; index = pickle.loads(Path('{PICKLE}').read_bytes()); "
    f"Path('{JSON}').write_text(json.dumps({{key: list(index[key]) for key in {COLUMNS}}}))\""
)

#: Share of names that may differ before it is another index: the benchmark's are in lower case and without points
#: ("c p u"), and a name or two may have been mended since.
OTHER_NAMES = 0.1


@dataclass(frozen=True)
class Index:
    """images: below the release's folder, in the index's order.   names: of category 1 on."""

    path: Path
    images: tuple[PurePosixPath, ...]
    names: tuple[str, ...]


def index_file(root: Path) -> Path | None:
    """The index in a folder; one that was converted goes first."""
    return next((root / name for name in (JSON, PICKLE) if (root / name).exists()), None)


def read_index(path: Path) -> Index:
    """Raises UserError where it is damaged, asks for code, or is no index of ADE20K."""
    content = _read_json(path) if path.suffix == ".json" else read_plain_pickle(path, CONVERT)
    if not isinstance(content, dict):
        raise UserError(f"{path} is no index of ADE20K, which holds lists by name; unpack the release again")
    folders, files, names = (_strings(path, content, key) for key in COLUMNS)
    if len(folders) != len(files):
        raise UserError(f"{path} lists {len(folders)} folders, but {len(files)} files; unpack the release again")
    return Index(path, tuple(map(_below_release, folders, files)), tuple(names))


def refuse_other_names(index: Index, wanted: Mapping[int, str]) -> None:
    """wanted: category, from 1 → name. Raises UserError where too many of the index's are others."""
    named = {category: index.names[category - 1] for category in wanted if category <= len(index.names)}
    other = [category for category, name in wanted.items() if _plain(named.get(category, "")) != _plain(name)]
    if len(other) > OTHER_NAMES * len(wanted):
        seen, ours = named.get(other[0], "nothing"), wanted[other[0]]
        raise UserError(
            f"{index.path} is not of the release of 2021: {len(other)} of {len(wanted)} categories have another name, "
            f"like {other[0]}, {seen!r} instead of {ours!r}; download ADE20K_2021_17_01"
        )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); write it again") from None


def _strings(path: Path, content: dict[str, Any], key: str) -> list[str]:
    column = content.get(key)
    if not isinstance(column, list | np.ndarray) or not all(isinstance(text, str) for text in column):
        raise UserError(f"{path} is no index of ADE20K: {key} is no list of strings; unpack the release again")
    return list(column)


def _below_release(folder: str, file: str) -> PurePosixPath:
    """ADE20K_2021_17_01/images/ADE/…, file → images/ADE/…/file; nothing above images is believed."""
    parts = PurePosixPath(folder).parts
    if "images" not in parts or ".." in parts or not re.fullmatch(r"ADE_\w+\.jpg", file):
        raise UserError(f"the index lists {file!r} in {folder!r}, wanted ADE_….jpg below images; unpack it again")
    return PurePosixPath(*parts[parts.index("images") :], file)


def _plain(name: str) -> str:
    """The first of its synonyms, letters and digits alone."""
    return re.sub(r"[^a-z0-9]+", " ", name.split(",")[0].lower()).strip()
