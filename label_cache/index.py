"""The look-up structure beside the parts: derived from them, memory-mapped, thrown away whenever it may not fit.

    index/keys.npy      u64 [n]      blake2b-64 of every image id, ascending
    index/rows.npy      u32 | i64 [n]  row of each key, counted through the parts in the order of the manifest
    index/labels.npy    i16 | i32 [n, k]
    index/scores.npy    f16 [n, k]   the stored scores exactly: they have float16 precision
    index/sources.npy   i8 [n]       position in rows.SOURCES
    index/ids.npy       u8 [bytes]   all image ids one after the other, UTF-8, by row
    index/offsets.npy   i64 [n + 1]  where each of them starts
    index/DERIVED.json  sha256 of the manifest, salt of the keys, size of every file

A key only says where to look; the id that stands there is compared. Building reads every part through its sha256 and
page checksums, so a damaged part gives no index.

When an index is trusted. DERIVED.json must name the sha256 of the manifest as it is now (a few µs), and every part must
have the size that the manifest says and must not have been touched since the index was begun (one `stat` per part,
about 2 µs); its modification time records that moment. Parts touched later, copied ones for example, are compared with
the sha256 in the manifest once (1 to 2 GB/s), and the moment moves on; once more where that opening came within the
same tick of the file system's clock as the edit (milliseconds). So no edit of a part goes unnoticed. What decays on a
disk by itself is found by `quality.check`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from label_cache.errors import reason
from label_cache.files import remove, temporary_beside
from label_cache.parts import check_size, read_bytes
from label_cache.rows import Columns, source_codes
from label_cache.schema import Manifest

#: Folder of the index in a cache directory, and the file in it that says what it was derived from.
INDEX = "index"
DERIVED = "DERIVED.json"
#: Version of the index files; an index of another one is built anew.
LAYOUT = 1
ARRAYS = ("keys", "rows", "labels", "scores", "sources", "ids", "offsets")
_log = logging.getLogger("label_cache")


@dataclass(frozen=True, eq=False)
class Index:
    """Memory-mapped arrays (see the top of this file) that answer: which row is this image, what stands in it."""

    keys: NDArray[np.uint64]
    rows: NDArray[Any]
    labels: NDArray[Any]
    scores: NDArray[np.float16]
    sources: NDArray[np.int8]
    ids: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    salt: bytes
    _row_at: memoryview = field(init=False, repr=False)
    _offset_at: memoryview = field(init=False, repr=False)
    _bytes_at: memoryview = field(init=False, repr=False)
    _key_at: memoryview = field(init=False, repr=False)
    _starts: memoryview = field(init=False, repr=False)
    _shift: int = field(init=False, repr=False)
    _hash: hashlib.blake2b = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Where the keys with the same first bits start, about one key to each: 4 bytes an image, a third off a look-up.
        bits = max(1, (len(self.keys) - 1).bit_length())
        firsts = np.arange(2**bits, dtype=np.uint64) << np.uint64(64 - bits)
        starts = self.keys.searchsorted(firsts).astype(np.uint32 if len(self.keys) < 2**32 else np.int64)
        object.__setattr__(self, "_shift", 64 - bits)
        object.__setattr__(self, "_hash", hashlib.blake2b(digest_size=8, salt=self.salt))
        # Single elements of a memoryview are Python numbers; those of an array are slower numpy scalars.
        for name, array in (
            ("_row_at", self.rows), ("_offset_at", self.offsets), ("_bytes_at", self.ids), ("_key_at", self.keys),
            ("_starts", starts),
        ):  # fmt: skip
            object.__setattr__(self, name, memoryview(array.data))

    def row(self, image_id: str) -> int:
        """The row of an image, -1 for an unknown one."""
        raw = image_id.encode("utf-8", "surrogatepass")
        digest = self._hash.copy()  # half the time of a new one
        digest.update(raw)
        key = int.from_bytes(digest.digest(), "little")
        keys, place = self._key_at, self._starts[key >> self._shift]
        try:
            while (there := keys[place]) < key:
                place += 1
        except IndexError:  # beyond the last; cheaper than asking each time
            return -1
        return self._confirmed(raw, place) if there == key else -1

    def rows_of(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of many images, i64 [n], -1 for unknown ones."""
        raw = [image_id.encode("utf-8", "surrogatepass") for image_id in image_ids]
        places = self.keys.searchsorted(hashed(raw, self.salt))
        places = np.minimum(places, len(self.keys) - 1)
        found = [self._confirmed(text, place) for text, place in zip(raw, places.tolist(), strict=True)]
        return np.array(found, np.int64)

    def image_id(self, row: int) -> str:
        there = self._bytes_at[self._offset_at[row] : self._offset_at[row + 1]]
        return bytes(there).decode(errors="replace")  # a decayed byte must not hide the rest

    def _confirmed(self, raw: bytes, place: int) -> int:
        row: int = self._row_at[place]
        if not 0 <= row < len(self.sources):  # a decayed byte
            return -1
        there = self._bytes_at[self._offset_at[row] : self._offset_at[row + 1]]
        return row if there == raw else -1


def hashed(raw_ids: Sequence[bytes], salt: bytes) -> NDArray[np.uint64]:
    """Keys of image ids, u64 [n]."""
    new, digests = hashlib.blake2b(digest_size=8, salt=salt).copy, []
    for raw in raw_ids:
        digest = new()
        digest.update(raw)
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), "<u8")


def stored_index(directory: Path, manifest: Manifest, *, digest: str) -> Index | None:
    """The index that lies in the cache, or None where there is none that may be trusted."""
    for _ in range(5):  # another process may be replacing the folder; that is over within milliseconds
        try:
            folder = os.open(directory / INDEX, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return None
        try:
            index = load_index(directory / INDEX, manifest, digest=digest)
            same = os.fstat(folder).st_ino == os.stat(directory / INDEX).st_ino  # all files came from one folder
        except FileNotFoundError:
            continue  # replaced just now, or a file of it was deleted
        finally:
            os.close(folder)
        if same:
            break
    else:
        return None
    if index is not None:
        _confirm_parts(directory, manifest)
    return index


def load_index(folder: Path, manifest: Manifest, *, digest: str) -> Index | None:
    """The arrays of an index folder, or None where they are not those of this manifest.

    Raises FileNotFoundError where one of its files is not there.
    """
    try:
        derived = json.loads((folder / DERIVED).read_bytes())
        if (derived["layout"], derived["manifest"]) != (LAYOUT, digest):
            return None
        if any((folder / name).stat().st_size != size for name, size in derived["files"].items()):
            return None
        arrays = {name: _mapped(folder / f"{name}.npy") for name in ARRAYS}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    shapes = {name: arrays[name].shape for name in ("keys", "rows", "labels", "scores", "sources", "offsets")}
    n, k = manifest.rows, manifest.key.k
    wanted = {"keys": (n,), "rows": (n,), "labels": (n, k), "scores": (n, k), "sources": (n,), "offsets": (n + 1,)}
    return Index(**arrays, salt=bytes.fromhex(derived["salt"])) if shapes == wanted else None


def _mapped(path: Path) -> NDArray[Any]:
    return np.asarray(np.load(path, mmap_mode="r"))  # as a plain array: indexing a np.memmap costs 1 µs more


def _confirm_parts(directory: Path, manifest: Manifest) -> None:
    """Compare the parts touched since the index was begun with their sha256. Raises CacheError on a difference."""
    derived = directory / INDEX / DERIVED
    begun = derived.stat().st_mtime_ns
    touched = [part for part in manifest.parts if check_size(directory, part) >= begun]
    if not touched:
        return
    try:
        now = _time_of(directory)
    except OSError as error:
        _log.warning(
            "cache %s: parts are newer than the index and it cannot be marked as checked (%s); "
            "each opening reads them in full",
            directory,
            reason(error),
        )
        now = begun
    for part in touched:
        read_bytes(directory, part)
    with contextlib.suppress(OSError):  # told above, or the folder was replaced by one that is newer
        os.utime(derived, ns=(now, now))


def _time_of(directory: Path) -> int:
    """Now, by the clock that stamps the files of this directory."""
    probe = temporary_beside(directory / INDEX)
    probe.touch()
    try:
        return probe.stat().st_mtime_ns
    finally:
        remove(probe)


def expected_rows(index: Index, columns: Columns, start: int) -> bool:
    """Whether the rows of an index from `start` on are these, in every array of it."""
    rows = slice(start, start + len(columns))
    raw = [image_id.encode() for image_id in columns.image_ids]
    keys = hashed(raw, index.salt)
    places = np.minimum(index.keys.searchsorted(keys), len(index.keys) - 1)
    return (
        np.array_equal(index.keys[places], keys)
        and np.array_equal(np.diff(index.offsets[start : rows.stop + 1]), [len(text) for text in raw])
        and np.array_equal(index.rows_of(columns.image_ids), np.arange(start, rows.stop))
        and np.array_equal(index.labels[rows], columns.labels)
        and np.array_equal(index.scores[rows], columns.scores.astype(np.float16))
        and np.array_equal(index.sources[rows], source_codes(columns.source))
    )
