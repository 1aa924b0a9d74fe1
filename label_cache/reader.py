"""Reading a cache: whole splits as arrays, single images by their id."""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from label_cache.errors import CacheError, reason
from label_cache.index import INDEX, Index
from label_cache.index_build import open_index
from label_cache.parts import check_size, is_part, read_part
from label_cache.rows import Columns, concatenate, source_names
from label_cache.schema import MANIFEST, CacheKey, Manifest, class_difference, class_hash, read_manifest, short

_INT, _FLOAT = np.dtype(np.int32), np.dtype(np.float32)  # made once: a look-up takes a few µs


class Expectation(TypedDict, total=False):
    """What a cache is asked to have been made from; entries left out are not compared.

    class_names: names in order of label id.      dataset: split → fingerprint (hex), for the splits that matter.
    model, preprocess: fingerprints (hex).      num_classes: K.      kappa: ranks that will be asked for, at most k.
    """

    class_names: Sequence[str]
    dataset: Mapping[str, str]
    model: str
    preprocess: str
    num_classes: int
    kappa: int


@dataclass(slots=True, eq=False)  # frozen would cost half a µs of three
class Lookup:
    """Rankings of n images in the order asked for. `labels, scores = cache.lookup(ids, kappa)` works too.

    labels: i32 [n, κ], most probable first.      scores: f32 [n, κ].      source_codes: i8 [n], places in rows.SOURCES.
    """

    image_ids: tuple[str, ...]
    labels: NDArray[np.int32]
    scores: NDArray[np.float32]
    source_codes: NDArray[np.int8]

    @property
    def source(self) -> NDArray[np.str_]:
        """How the classifier that ranked each image relates to it: text [n], one of rows.SOURCES."""
        return source_names(self.source_codes)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return iter((self.labels, self.scores))


class LabelCache:
    """A finished cache. Make one with `LabelCache.open`.

    May be pickled and used after a fork: it carries no handles, and maps its index on the first look-up of each
    process. It stays bound to the rows that were there when it was opened.
    """

    def __init__(self, path: Path, manifest: Manifest, digest: str) -> None:
        self.path, self.manifest, self.digest = path, manifest, digest
        self._rows = manifest.splits()
        self._k = manifest.key.k
        self._index: Index | None = None

    @classmethod
    def open(cls, path: str | Path, *, expect: Mapping[str, Any] | Expectation | None = None) -> LabelCache:
        """The cache in a directory, after comparing it with what it is expected to be (see Expectation).

        Costs one small file and one `stat` per part. Raises CacheError where there is no cache, it is unfinished, a
        part is missing or has another size, or an expectation is not met (both sides are named).
        """
        directory = Path(path)
        try:
            manifest, digest = read_manifest(directory)
        except OSError as error:
            raise _no_cache(directory, error) from error
        for part in manifest.parts:
            check_size(directory, part)
        differences = _differences(manifest, expect or {})
        if differences:
            raise CacheError(
                f"cache {directory} does not fit: {'; '.join(differences)}; "
                "open the cache that belongs here or make it with `kappaseg rank`"
            )
        return cls(directory, manifest, digest)

    @property
    def key(self) -> CacheKey:
        return self.manifest.key

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.manifest.class_names

    @property
    def num_classes(self) -> int:
        return self.key.num_classes

    @property
    def k(self) -> int:
        """Ranks stored per image."""
        return self._k

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._rows)

    @property
    def index(self) -> Index:
        """The mapped index; opened, and built if need be, on first use in a process."""
        if self._index is None:
            self.require_unchanged()
            self._index = open_index(self.path, self.manifest, digest=self.digest)
        return self._index

    def __len__(self) -> int:
        return self.manifest.rows

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and self.index.row(image_id) >= 0

    def ids(self, split: str) -> tuple[str, ...]:
        """Image ids of a split in the order of its rows."""
        return tuple(map(self.index.image_id, self.rows(split)))

    def lookup(self, ids: str | Sequence[str], kappa: int | None = None) -> Lookup:
        """The first κ labels and scores of one image or many, in the order asked for; all k where κ is not given.

        One id gives arrays with n = 1. Raises CacheError for an id that the cache does not hold and for a κ that it
        does not store.
        """
        kappa = self._k if kappa is None else kappa
        if not 1 <= kappa <= self._k:
            raise CacheError(
                f"kappa = {kappa}, but cache {self.path} stores {self.k} ranks per image; ask for 1 to {self.k} or "
                f"rank again with k = {max(kappa, 1)}"
            )
        index = self._index or self.index
        if isinstance(ids, str):
            row = index.row(ids)
            if row < 0:
                raise self._unknown(ids)
            one = slice(row, row + 1)
            cells = one, slice(kappa)
            labels, scores = index.labels[cells].astype(_INT), index.scores[cells].astype(_FLOAT)
            return Lookup((ids,), labels, scores, index.sources[one])
        names = tuple(ids)
        rows = index.rows_of(names)
        if (rows < 0).any():
            raise self._unknown(names[int(np.argmin(rows))])
        labels, scores = index.labels[rows, :kappa].astype(_INT), index.scores[rows, :kappa].astype(_FLOAT)
        return Lookup(names, labels, scores, index.sources[rows])

    def read_split(self, split: str) -> Columns:
        """All rows of a split from its parts, size, sha256 and page checksums verified; copied only to join parts."""
        self.rows(split)
        self.require_unchanged()
        parts = [part for part in self.manifest.parts if part.split == split]
        return concatenate([read_part(self.path, part, key=self.key) for part in parts])

    def require_unchanged(self) -> None:
        """Raises CacheError where the directory no longer holds the cache that was opened."""
        try:
            same = read_manifest(self.path)[1] == self.digest
        except OSError as error:
            raise _no_cache(self.path, error) from error
        if not same:
            raise CacheError(f"cache {self.path} was written anew since it was opened; open it again")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_index": None}

    def rows(self, split: str) -> range:
        """Row numbers of a split, in the index. Raises CacheError for a split that is not there."""
        if split not in self._rows:
            raise CacheError(
                f"split {split!r} is not in cache {self.path}, which holds {', '.join(self.splits)}; rank it first"
            )
        return self._rows[split]

    def _unknown(self, image_id: str) -> CacheError:
        known = sorted(name for split in self.splits for name in self.ids(split))
        if image_id in known:
            return CacheError(
                f"the look-up index of cache {self.path} does not find {image_id!r}, which it holds; "
                f"delete {self.path / INDEX}, it will be built anew"
            )
        close = _closest(image_id, known)
        hint = f"the closest id is {close!r}" if close else "rank the split that this image is in"
        return CacheError(
            f"image id {image_id!r} is not among the {len(self)} of cache {self.path} "
            f"(splits {', '.join(self.splits)}); {hint}"
        )


def _no_cache(directory: Path, error: OSError) -> CacheError:
    """Why a directory without a readable manifest is no cache, and what to do."""
    if not directory.is_dir():
        return CacheError(f"cache {directory} does not exist; make it with `kappaseg rank`")
    if not isinstance(error, FileNotFoundError):
        return CacheError(f"cache {directory} cannot be read: {reason(error)}")
    parts = sum(is_part(path) for path in directory.glob("*.parquet"))
    if parts:
        return CacheError(
            f"cache {directory} is unfinished ({parts} parts, no {MANIFEST}); run `kappaseg rank` again to finish it"
        )
    return CacheError(f"{directory} is no label cache (no {MANIFEST}); make one with `kappaseg rank`")


def _differences(manifest: Manifest, expect: Mapping[str, Any]) -> list[str]:
    """One phrase per expectation that a cache does not meet."""
    unknown = set(expect) - set(Expectation.__annotations__)
    if unknown:
        raise TypeError(f"unknown expectations {sorted(unknown)}; known: {', '.join(Expectation.__annotations__)}")
    key, found = manifest.key, []
    if "class_names" in expect and tuple(expect["class_names"]) != manifest.class_names:
        there, here = manifest.class_names, tuple(expect["class_names"])
        found.append(
            f"class list is {short(class_hash(there))} there and {short(class_hash(here))} here: "
            f"{class_difference(there, here)}"
        )
    for split, digest in expect.get("dataset", {}).items():
        if split not in key.dataset:
            found.append(f"it holds the splits {', '.join(key.dataset)}, wanted {split}")
        elif key.dataset[split] != digest:
            found.append(
                f"data set fingerprint of split {split} is {short(key.dataset[split])} there and {short(digest)} here"
            )
    for name, word in (("num_classes", "number of classes"), ("model", "model"), ("preprocess", "preprocessing")):
        if name in expect and getattr(key, name) != expect[name]:
            found.append(f"{word} is {short(getattr(key, name))} there and {short(expect[name])} here")
    if expect.get("kappa", 1) > key.k:
        found.append(f"it stores {key.k} ranks per image, wanted {expect['kappa']}")
    return found


def _closest(image_id: str, known: Sequence[str]) -> str | None:
    """A stored id that may have been meant: without folder or ending, in other case, or spelled alike."""
    path = PurePosixPath(image_id)
    for form in (path.name, path.stem, str(path.with_suffix("")) if path.suffix else image_id):
        place = bisect.bisect_left(known, form)
        if place < len(known) and known[place] == form:
            return form
    lower = {name.lower(): name for name in known}
    if image_id.lower() in lower:
        return lower[image_id.lower()]
    place = bisect.bisect_left(known, image_id)
    nearby = known if len(known) <= 5000 else known[max(0, place - 200) : place + 200]  # difflib: 10 µs per id
    return next(iter(difflib.get_close_matches(image_id, nearby, 1)), None)
