"""The look-up structure beside the parts: derived from them, memory-mapped, thrown away whenever it may not fit.

    index/table.npy     u64 [≥ 2n]   CRC-32 of an image id in the upper half, its row in the lower one; see `slots`
    index/labels.npy    i16 | i32 [n, k]
    index/scores.npy    f16 [n, k]   the stored scores exactly: they have float16 precision
    index/sources.npy   i8 [n]       position in rows.SOURCES
    index/ids.npy       u8 [bytes]   all image ids one after the other, UTF-8, by row
    index/offsets.npy   i64 [n + 1]  where each of them starts
    index/DERIVED.json  sha256 of the manifest, size of every file

Rows are counted through the parts in the order of the manifest. The CRC only says where to look; the id that stands
there is compared. A look-up costs what it waits for memory: it touches one place of each file. Building reads every
part through its sha256 and page checksums, so a damaged part gives no index.

When an index is trusted. DERIVED.json must name the sha256 of the manifest as it is now (a few µs), and every part must
have the size that the manifest says and must not have been touched since the index was begun (one `stat` per part,
about 2 µs); its modification time records that moment. Parts touched later, copied ones for example, are compared with
the sha256 in the manifest once (1 to 2 GB/s), and the moment moves on; once more where that opening came within the
same tick of the file system's clock as the edit (milliseconds). So no edit of a part goes unnoticed. What decays on a
disk by itself is found by `quality.check`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

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
LAYOUT = 2
ARRAYS = ("table", "labels", "scores", "sources", "ids", "offsets")
#: A slot of the table that holds no row: above all that do.
EMPTY = 2**64 - 1
_log = logging.getLogger("label_cache")


@dataclass(frozen=True, eq=False)
class Index:
    """Memory-mapped arrays (see the top of this file) that answer: which row is this image, what stands in it."""

    table: NDArray[np.uint64]
    labels: NDArray[Any]
    scores: NDArray[np.float16]
    sources: NDArray[np.int8]
    ids: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    _slots: memoryview = field(init=False, repr=False)
    _offset_at: memoryview = field(init=False, repr=False)
    _bytes_at: memoryview = field(init=False, repr=False)
    _shift: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_shift", 32 - bits(len(self.sources)))
        # Single elements of a memoryview are Python numbers; those of an array are slower numpy scalars.
        for name, array in (("_slots", self.table), ("_offset_at", self.offsets), ("_bytes_at", self.ids)):
            object.__setattr__(self, name, memoryview(array.data))

    def row(self, image_id: str) -> int:
        """The row of an image, -1 for an unknown one."""
        raw = image_id.encode("utf-8", "surrogatepass")
        key = crc32(raw)
        place, first, slots, starts = key >> self._shift, key << 32, self._slots, self._offset_at
        try:
            while (slot := slots[place]) < first:
                place += 1
            while slot >> 32 == key:
                row = slot & 0xFFFFFFFF
                if self._bytes_at[starts[row] : starts[row + 1]] == raw:
                    return row
                place += 1
                slot = slots[place]
        except IndexError:  # a decayed byte, or an empty slot, whose upper half is the largest CRC
            pass
        return -1

    def rows_of(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of many images, i64 [n], -1 for unknown ones."""
        return np.fromiter(map(self.row, image_ids), np.int64, len(image_ids))

    def image_id(self, row: int) -> str:
        there = self._bytes_at[self._offset_at[row] : self._offset_at[row + 1]]
        return bytes(there).decode(errors="replace")  # a decayed byte must not hide the rest


def bits(rows: int) -> int:
    """How many bits of a CRC-32 choose the first place in the table: two to four places for each row."""
    return min(32, (2 * rows - 1).bit_length())


def slots(raw_ids: Sequence[bytes]) -> NDArray[np.uint64]:
    """The table of ids in the order of their rows, u64 [≥ 2n]: hashing with linear probing, in ascending order.

    Every CRC has its first place, `crc >> (32 - bits(n))`; a slot lies there or right behind smaller ones. So a search
    starts there, passes what is smaller, and ends at the first slot that is larger, as an empty one is.
    """
    rows = np.arange(len(raw_ids), dtype=np.int64)
    taken = np.fromiter(map(crc32, raw_ids), np.uint64, len(raw_ids)) << np.uint64(32) | rows.astype(np.uint64)
    taken.sort()
    first = (taken >> np.uint64(64 - bits(len(raw_ids)))).astype(np.int64)
    places = np.maximum.accumulate(first - rows) + rows
    table = np.full(max(2 ** bits(len(raw_ids)), int(places[-1]) + 1) + 1, EMPTY, np.uint64)
    table[places] = taken
    return table


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
    n, k = manifest.rows, manifest.key.k
    wanted = {"labels": (n, k), "scores": (n, k), "sources": (n,), "offsets": (n + 1,)}
    return Index(**arrays) if all(arrays[name].shape == shape for name, shape in wanted.items()) else None


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
    return (
        np.array_equal(np.diff(index.offsets[start : rows.stop + 1]), [len(text) for text in raw])
        and np.array_equal(index.rows_of(columns.image_ids), np.arange(start, rows.stop))
        and np.array_equal(index.labels[rows], columns.labels)
        and np.array_equal(index.scores[rows], columns.scores.astype(np.float16))
        and np.array_equal(index.sources[rows], source_codes(columns.source))
    )
