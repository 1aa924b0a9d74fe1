"""Making the packed file that packed.py reads (it describes the file)."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.files import write_atomic
from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes.folder import CROWD_VALUE, FolderScenes
from kappaseg_core.segments import CROWD
from kappaseg_core.structures import SceneSet

FORMAT = "kappaseg packed scenes"
VERSION = 1

LEVEL = 3  # of the label maps' deflate: the level that unpacks fastest; higher ones save little beside the photos
UINT8_CLASSES = 254  # up to here ids and an ignore value of 255 fit one byte
UINT16_CLASSES = 65535

_Place = tuple[FolderScenes, int]  # a scene: where it stands in which set


def pack(
    scene_sets: Sequence[SceneSet], destination: str | Path, *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write the splits of one folder into one packed file.

    The file gets its name when it is complete and on disk; a killed pack leaves a temporary file beside it that the
    next one overwrites. Every scene is decoded and checked on the way; the first bad one raises its UserError.
    progress: called with (samples written, samples in all).
    """
    folders = _of_one_folder(scene_sets)
    destination = Path(destination)
    if not destination.parent.is_dir():
        raise UserError(f"cannot write {destination}: folder {destination.parent} does not exist; make it first")
    places: dict[str, _Place] = {}
    for scenes in folders:
        for index, image_id in enumerate(scenes.image_ids):
            places.setdefault(image_id, (scenes, index))
    write_atomic(destination, lambda temporary: _write(temporary, folders, places, progress))


def _of_one_folder(scene_sets: Sequence[SceneSet]) -> list[FolderScenes]:
    folders = [scenes for scenes in scene_sets if isinstance(scenes, FolderScenes)]
    if not folders or len(folders) < len(scene_sets):
        kinds = ", ".join(type(scenes).__name__ for scenes in scene_sets) or "nothing"
        raise UserError(f"pack got {kinds}, wanted splits of a folder; set data.kind to folder")
    first = folders[0]
    for scenes in folders[1:]:
        if (scenes.root, scenes.options, scenes.class_names) != (first.root, first.options, first.class_names):
            raise UserError(
                f"pack got splits of {first.root} and {scenes.root}, wanted one folder and one set of options"
            )
    splits = [scenes.split for scenes in folders]
    if len(set(splits)) < len(splits):
        raise UserError(f"pack got splits {', '.join(splits)}, wanted each one once")
    if len(first.class_names) > UINT16_CLASSES:
        raise UserError(
            f"pack got {len(first.class_names)} classes, wanted at most {UINT16_CLASSES} (16-bit label maps)"
        )
    return folders


def _write(
    path: Path,
    folders: list[FolderScenes],
    places: dict[str, _Place],
    progress: Callable[[int, int], None] | None,
) -> None:
    with _Sink(path) as sink:
        with h5py.File(sink, "w", libver=("v110", "v110")) as file:
            _write_head(file, folders, list(places))
            for done in _write_samples(file, places):
                sink.check()
                if progress:
                    progress(done, len(places))
        sink.check()


class _Sink(io.FileIO):
    """A file that keeps its first write error to itself: HDF5 crashes where it cannot write what it has to on closing.

    Nothing is written after an error; `check` raises it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """All of `data` (a plain file may write less at the end of a disk)."""
        left = memoryview(data)
        try:
            while left and not self.error:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self.tell() if self.error else super().truncate(size)
        except OSError as error:
            self.error = error
            return self.tell()

    def check(self) -> None:
        if self.error:
            raise self.error


def _write_head(file: h5py.File, folders: list[FolderScenes], image_ids: list[str]) -> None:
    """Everything that is known before the samples are read."""
    class_names = folders[0].class_names
    _write_table(file, "class_name", _texts(class_names))
    _write_table(file, "image_id", _texts(image_ids))
    row = {image_id: number for number, image_id in enumerate(image_ids)}
    for scenes in folders:
        rows = np.array([row[image_id] for image_id in scenes.image_ids], np.uint32)
        _write_table(file, f"split/{scenes.split}", rows)
    file.attrs["ignore"] = 255 if len(class_names) <= UINT8_CLASSES else 65535
    if folders[0].things is not None:
        _write_table(file, "thing", np.array(folders[0].things, np.uint8))


def _write_samples(file: h5py.File, places: dict[str, _Place]) -> Iterator[int]:
    """Photos, label maps and the tables about them, giving the number of samples written after each.

    The attributes that make the file a finished one come last.
    """
    ignore, total = int(file.attrs["ignore"]), len(places)
    shapes = np.array([scenes.mask_shape(index) for scenes, index in places.values()], np.uint32)
    sizes = np.array([scenes.image_path(index).stat().st_size for scenes, index in places.values()], np.uint32)
    crcs, hashes = np.empty((2, total), np.uint32), np.empty((total, 32), np.uint8)
    image = _rows(file, "image", np.uint8, total, int(sizes.max()))
    mask = _rows(file, "mask", np.uint8 if ignore == 255 else np.uint16, total, int(shapes.prod(1).max()))
    instances = _Instances(file, total, mask.shape[1]) if "thing" in file else None
    for number, (scenes, index) in enumerate(places.values()):
        data, scene = scenes.image_bytes(index), scenes[index]
        labels = np.where(scene.mask == IGNORE, ignore, scene.mask).astype(mask.dtype).tobytes()
        if (len(data), scene.mask.shape) != (sizes[number], tuple(shapes[number])):
            raise UserError(f"the files of {scene.image_id} changed while they were packed; pack again")
        image.id.write_direct_chunk((number, 0), _stored(data, image.chunks[1]))
        mask.id.write_direct_chunk((number, 0), _deflated(labels, mask.chunks[1] * mask.dtype.itemsize))
        crcs[:, number] = zlib.crc32(data), zlib.crc32(labels)
        hashes[number] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
        if instances is not None and scene.instances is not None:
            instances.write(number, scene.instances)
        yield number + 1
    tables = {"image_size": sizes, "mask_shape": shapes, "image_crc32": crcs[0], "mask_crc32": crcs[1]}
    if instances is not None:
        tables["instances_crc32"] = instances.crcs
    for name, values in {**tables, "image_sha256": hashes}.items():
        _write_table(file, name, values)
    file.attrs["content"] = _content(file)
    file.attrs["version"] = VERSION
    file.attrs["format"] = FORMAT


class _Instances:
    """The instance maps of a file whose masks have up to `pixels` pixels."""

    def __init__(self, file: h5py.File, count: int, pixels: int) -> None:
        self.rows = _rows(file, "instances", np.uint16, count, pixels)
        self.crcs = np.empty(count, np.uint32)

    def write(self, number: int, instances: np.ndarray) -> None:
        """instances: i32 [H, W], as in a Scene."""
        data = np.where(instances == CROWD, CROWD_VALUE, instances).astype(np.uint16).tobytes()
        self.rows.id.write_direct_chunk((number, 0), _deflated(data, self.rows.chunks[1] * 2))
        self.crcs[number] = zlib.crc32(data)


def _rows(file: h5py.File, name: str, dtype: type[np.generic], count: int, length: int) -> h5py.Dataset:
    """A dataset of `count` padded samples, a chunk each, whose chunks we deflate ourselves."""
    return file.create_dataset(
        name, (count, length), dtype, chunks=(1, length), compression="gzip", compression_opts=LEVEL
    )


def _write_table(file: h5py.File, name: str, values: np.ndarray) -> None:
    file.create_dataset(name, data=values, chunks=values.shape, fletcher32=True)


def _content(file: h5py.File) -> str:
    """sha256 over the tables: tells a file from another one under the same name."""
    digest = hashlib.sha256()
    of_instances = [name for name in ("thing", "instances_crc32") if name in file]
    splits = (f"split/{split}" for split in file["split"])
    for name in ("class_name", "image_id", "image_sha256", "mask_crc32", *of_instances, *splits):
        digest.update(name.encode() + file[name][:].tobytes())
    return digest.hexdigest()


def _texts(texts: Sequence[str]) -> np.ndarray:
    """Texts as fixed-length UTF-8: of variable-length ones HDF5 keeps no checksum."""
    return np.array([text.encode() for text in texts], dtype=np.bytes_)


def _stored(data: bytes, length: int) -> bytes:
    """A zlib stream of `data` as it is, followed by deflated zeros up to `length`."""
    padding = bytes(length - len(data))
    whole, zeros = zlib.compressobj(0, wbits=-15), zlib.compressobj(9, wbits=-15)
    body = whole.compress(data) + whole.flush(zlib.Z_FULL_FLUSH) + zeros.compress(padding) + zeros.flush()
    return b"\x78\x01" + body + zlib.adler32(padding, zlib.adler32(data)).to_bytes(4, "big")


def _deflated(data: bytes, length: int) -> bytes:
    return zlib.compress(data.ljust(length, b"\0"), LEVEL)
