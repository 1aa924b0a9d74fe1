"""Writing a cache part by part, so that it may be interrupted at any moment and continued.

    writer = CacheWriter(path, key, class_names)
    if not writer.is_committed():
        for each split, index, ids of a part:
            if not writer.part_done(split, index, ids=ids):
                writer.write_part(split, index, ids=…, labels=…, scores=…, source=…)
        writer.commit({split: number of parts})

The manifest exists exactly while the parts it names are all there: it is removed before the first part is written over
and written, by rename, after everything else. Several processes may write parts of one cache, each with a writer of
its own; one of them commits when all have finished.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from numpy.typing import ArrayLike

from label_cache.errors import CacheError, reason
from label_cache.files import remove, remove_dead, remove_temporaries, sync_directory, write_whole
from label_cache.parts import decode_part, encode_part, is_part, missing, part_name, read_bytes
from label_cache.rows import Columns, arrange
from label_cache.schema import MANIFEST, CacheKey, Manifest, PartEntry, class_hash, key_differences, read_manifest


class CacheWriter:
    """A cache being written for one key.

    Raises CacheError where the directory holds a finished cache of another key (naming what differs; `discard` deletes
    it), cannot be written, or the class names are not those of the key. Parts of an unfinished cache of another key
    are written over.
    """

    def __init__(self, path: str | Path, key: CacheKey, class_names: Sequence[str]) -> None:
        self.path, self.key, self.class_names = Path(path), key, tuple(class_names)
        if class_hash(self.class_names) != key.classes or len(self.class_names) != key.num_classes:
            raise CacheError(
                f"cache {path}: {len(self.class_names)} class names do not give the key's class hash for "
                f"{key.num_classes} classes; make the key with class_hash(class_names)"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            remove_dead(self.path)
        except OSError as error:
            raise CacheError(f"cannot write cache {path}: {reason(error)}; choose another directory") from error
        self._refuse_other_key()

    def is_committed(self) -> bool:
        """Whether the cache is finished and whole: manifest there, every part with the size and sha256 it names."""
        manifest = self._manifest()
        if manifest is None or manifest.key != self.key:
            return False
        return all(self._intact(part) for part in manifest.parts)

    def part_done(self, split: str, index: int, *, ids: Sequence[str] | None = None) -> bool:
        """Whether a part is there, undamaged, for this key, and with exactly these image ids (in any order).

        Parts that a manifest names are compared with its sha256. The others are decoded and encoded again: only a part
        that this writer would write in the same way, bit for bit, is done.
        """
        try:
            data = (self.path / part_name(split, index)).read_bytes()
            header, columns = decode_part(data)
        except (OSError, CacheError):
            return False
        if (header.fingerprint, header.split, header.index) != (self.key.fingerprint(), split, index):
            return False
        if ids is not None and tuple(sorted(ids)) != columns.image_ids:
            return False
        return hashlib.sha256(data).hexdigest() in self._promised(split, index) or self._same(data, columns, index)

    def write_part(
        self,
        split: str,
        index: int,
        *,
        ids: Sequence[str],
        labels: ArrayLike,
        scores: ArrayLike,
        source: str | Sequence[str],
        truth: Sequence[ArrayLike] | None = None,
        truth_pixels: Sequence[ArrayLike] | None = None,
    ) -> None:
        """Write part number `index` of a split, whole or not at all.

        ids: n image ids, in any order.      labels: whole numbers [n, k].      scores: [n, k] in [0, 1].
        source: one of SOURCES for all rows, or one per row.
        truth: per image the labels present.      truth_pixels: per image the pixels of each of them.
        Rows are sorted by id, ranks by score (see `rows.arrange`). Raises CacheError on rows that are not valid, a
        full disk or a directory that cannot be written.
        """
        if split not in self.key.dataset:
            raise CacheError(f"split {split!r} is not in the key of cache {self.path}; it has {self._splits()}")
        columns = arrange(
            split,
            ids,
            labels=labels,
            scores=scores,
            source=source,
            truth=truth,
            truth_pixels=truth_pixels,
            num_classes=self.key.num_classes,
        )
        if columns.k != self.key.k:
            raise CacheError(f"{columns.k} ranks per image for cache {self.path}, its key says {self.key.k}")
        data = encode_part(columns, index, key=self.key)
        self._withdraw_manifest()
        write_whole(self.path / part_name(split, index), data)

    def commit(self, parts: Mapping[str, int]) -> Manifest:
        """Make the parts 0..parts[split]-1 of every split a cache; nothing is done where it is one already.

        Raises CacheError where a part is missing or damaged, a split is left out, or an image is ranked twice. Parts
        left from another division into parts are deleted.
        """
        done = self._manifest()
        if done is not None and self.is_committed():
            return done
        if set(parts) != set(self.key.dataset):
            raise CacheError(f"cache {self.path} needs parts of the splits {self._splits()}, got {', '.join(parts)}")
        seen: dict[str, str] = {}
        entries = [self._entry(split, index, seen) for split in sorted(parts) for index in range(parts[split])]
        manifest = Manifest(key=self.key, class_names=self.class_names, parts=tuple(entries))
        _remove_parts(self.path, keep={entry.name for entry in entries})
        remove_temporaries(self.path)
        write_whole(self.path / MANIFEST, manifest.to_json().encode())
        return manifest

    def _refuse_other_key(self) -> None:
        manifest = self._manifest()
        if manifest is not None and manifest.key != self.key:
            differences = "; ".join(key_differences(manifest.key, self.key))
            raise CacheError(
                f"{self.path} holds a cache of something else: {differences}; delete it or choose another directory"
            )

    def _manifest(self) -> Manifest | None:
        """The manifest, or None where the cache is unfinished. Raises CacheError where it cannot be understood."""
        try:
            return read_manifest(self.path)[0]
        except FileNotFoundError:
            return None

    def _intact(self, entry: PartEntry) -> bool:
        try:
            read_bytes(self.path, entry)
        except CacheError:
            return False
        return True

    def _promised(self, split: str, index: int) -> set[str]:
        manifest = self._manifest()
        name = part_name(split, index)
        return {part.sha256 for part in manifest.parts if part.name == name} if manifest else set()

    def _same(self, data: bytes, columns: Columns, index: int) -> bool:
        try:
            return encode_part(columns, index, key=self.key) == data
        except (ValueError, OverflowError):  # rows that no writer would have written
            return False

    def _withdraw_manifest(self) -> None:
        try:
            if (self.path / MANIFEST).exists():
                remove(self.path / MANIFEST)
                sync_directory(self.path)
        except OSError as error:
            raise CacheError(f"cannot write cache {self.path}: {reason(error)}; choose another directory") from error

    def _entry(self, split: str, index: int, seen: dict[str, str]) -> PartEntry:
        name = part_name(split, index)
        try:
            data = (self.path / name).read_bytes()
            header, columns = decode_part(data)
        except FileNotFoundError:
            raise missing(self.path, name) from None
        except (OSError, CacheError) as error:
            raise CacheError(
                f"part {name} of cache {self.path} is damaged ({reason(error)}); "
                "delete that part and run `kappaseg rank` again"
            ) from error
        if (header.fingerprint, header.split, header.index) != (self.key.fingerprint(), split, index):
            raise CacheError(f"part {name} of cache {self.path} is of another cache; delete it and rank again")
        for image_id in columns.image_ids:
            if image_id in seen:
                raise CacheError(
                    f"image id {image_id!r} is in the parts {seen[image_id]} and {name} of cache {self.path}; "
                    "an image may be ranked once, so splits must not overlap (`kappaseg data check` lists them)"
                )
            seen[image_id] = name
        return PartEntry(
            name=name,
            split=split,
            rows=len(columns),
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            first_id=columns.image_ids[0],
            last_id=columns.image_ids[-1],
        )

    def _splits(self) -> str:
        return ", ".join(self.key.dataset)


def discard(path: str | Path) -> None:
    """Delete a cache, finished or not: manifest first, then index, parts and temporary files; nothing else.

    The directory goes too if nothing is left in it. No error where there is none.
    """
    directory = Path(path)
    if not directory.is_dir():
        return
    named: tuple[PartEntry, ...] = ()
    with contextlib.suppress(FileNotFoundError, CacheError):  # a manifest that nobody understands names nothing
        named = read_manifest(directory)[0].parts
    try:
        remove(directory / MANIFEST)
        sync_directory(directory)
        remove(directory / "index")
        for part in named:
            remove(directory / part.name)
        _remove_parts(directory, keep=set())
        remove_dead(directory)
        remove_temporaries(directory)
    except OSError as error:
        raise CacheError(f"cannot delete cache {path}: {reason(error)}") from error
    with contextlib.suppress(OSError):
        directory.rmdir()


def _remove_parts(directory: Path, *, keep: set[str]) -> None:
    """Delete the parts of label caches in a directory; Parquet files of anything else stay."""
    for path in sorted(directory.glob("*-[0-9][0-9][0-9][0-9][0-9].parquet")):
        if path.name not in keep and is_part(path):
            remove(path)
