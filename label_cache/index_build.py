"""Building the look-up structure of `index.py` from the parts, and opening it for whoever asks."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from label_cache.errors import CacheError, reason
from label_cache.files import remove, remove_dead, temporary_beside
from label_cache.index import ARRAYS, DERIVED, INDEX, LAYOUT, Index, load_index, slots, stored_index
from label_cache.parts import read_part
from label_cache.rows import label_type, source_codes
from label_cache.schema import Manifest

_log = logging.getLogger("label_cache")


def open_index(directory: Path, manifest: Manifest, *, digest: str) -> Index:
    """The index of a cache, built where there is none that fits. `digest`: sha256 of the manifest file.

    Several processes may do this at once: each builds in a folder of its own and renames it into place; the mapped
    files of the others stay valid. Raises CacheError naming a part that is missing or damaged.
    """
    index = stored_index(directory, manifest, digest=digest)
    return _build(directory, manifest, digest) if index is None else index


def _build(directory: Path, manifest: Manifest, digest: str) -> Index:
    """Build the index in a folder of its own and put it in place; in a private folder where the cache is read-only."""
    folder = temporary_beside(directory / INDEX)
    try:
        remove_dead(directory)
        folder.mkdir()
        index = _build_in(folder, directory, manifest, digest)
    except OSError as error:
        remove(folder)
        return _build_privately(directory, manifest, digest, why=reason(error))
    except BaseException:
        remove(folder)
        raise
    _publish(folder, directory / INDEX)
    return index


def _build_privately(directory: Path, manifest: Manifest, digest: str, *, why: str) -> Index:
    _log.warning(
        "cache %s: the look-up index cannot be stored there (%s); this process builds one of its own for %d images. "
        "Make the directory writable once and run `kappaseg cache check` to keep it",
        directory,
        why,
        manifest.rows,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="label-cache-index-") as folder:
            return _build_in(Path(folder), directory, manifest, digest)  # mapped files outlive their names
    except OSError as error:
        raise CacheError(
            f"no place for the look-up index of cache {directory}: {why} there, {reason(error)} in "
            f"{tempfile.gettempdir()}; free space or set TMPDIR"
        ) from error


def _build_in(folder: Path, directory: Path, manifest: Manifest, digest: str) -> Index:
    begun = folder.stat().st_mtime_ns
    _write_arrays(folder, directory, manifest)
    files = {f"{name}.npy": (folder / f"{name}.npy").stat().st_size for name in ARRAYS}
    derived = {"layout": LAYOUT, "manifest": digest, "files": files}
    with open(folder / DERIVED, "x", encoding="utf-8") as file:
        file.write(json.dumps(derived, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.utime(folder / DERIVED, ns=(begun, begun))
    index = load_index(folder, manifest, digest=digest)
    if index is None:
        raise CacheError(f"the index just built for cache {directory} cannot be read back; check the disk")
    return index


def _write_arrays(folder: Path, directory: Path, manifest: Manifest) -> None:
    """Stream all parts into the array files, one part in memory at a time.

    Plain writes, not a writable memory map: a full disk is then an OSError and not a signal.
    """
    n, k, label = manifest.rows, manifest.key.k, label_type(manifest.key.num_classes)
    raw_ids: list[bytes] = []
    with contextlib.ExitStack() as files:
        labels = files.enter_context(_array_file(folder / "labels.npy", (n, k), label))
        scores = files.enter_context(_array_file(folder / "scores.npy", (n, k), np.float16))
        sources = files.enter_context(_array_file(folder / "sources.npy", (n,), np.int8))
        for part in manifest.parts:
            columns = read_part(directory, part, key=manifest.key)
            labels.write(columns.labels.tobytes())
            scores.write(columns.scores.astype(np.float16).tobytes())
            sources.write(source_codes(columns.source).tobytes())
            raw_ids.extend(image_id.encode() for image_id in columns.image_ids)
        for file in (labels, scores, sources):
            file.flush()
            os.fsync(file.fileno())
    if len(set(raw_ids)) < n:
        raise CacheError(f"cache {directory} holds an image id twice; delete the cache and run `kappaseg rank` again")
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(raw) for raw in raw_ids], dtype=np.int64)])
    ids = np.frombuffer(b"".join(raw_ids), np.uint8)
    for name, array in (("table", slots(raw_ids)), ("ids", ids), ("offsets", offsets)):
        with _array_file(folder / f"{name}.npy", array.shape, array.dtype) as file:
            file.write(array.tobytes())
            file.flush()
            os.fsync(file.fileno())


def _array_file(path: Path, shape: tuple[int, ...], kind: Any) -> IO[bytes]:
    file = open(path, "xb")  # noqa: SIM115 (the caller closes it)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file


def _publish(folder: Path, place: Path) -> None:
    """Rename a built index into place, over whatever is there. Whoever comes last wins; all built the same."""
    for _ in range(100):
        try:
            os.rename(folder, place)
            return
        except OSError:
            aside = temporary_beside(place)
            with contextlib.suppress(OSError):  # somebody else moved it first
                os.rename(place, aside)
                remove(aside)
    _log.warning("the look-up index %s cannot be replaced; this process uses one that will not be kept", place)
    remove(folder)  # its files stay mapped
