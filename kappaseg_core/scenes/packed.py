"""Scenes in one HDF5 file: the photos' own bytes and label maps, one sample per chunk.

For network file systems and millions of files: one file to copy, one read per photo and one per label map. Any HDF5
reader opens it, with nothing but the deflate filter that all of them have:

    with h5py.File(path) as file:                                # for sample i of split "train":
        row = file["split/train"][i]                             # an image may be in several splits, it is stored once
        name = file["image_id"][row].decode()
        jpeg = file["image"][row, : file["image_size"][row]].tobytes()     # the original file, EXIF and all
        height, width = file["mask_shape"][row]
        mask = file["mask"][row, : height * width].reshape(height, width)  # class ids; file.attrs["ignore"] = no label

`image` u8 [N, longest file] and `mask` u8 or u16 [N, most pixels] are padded with zeros; a row is a chunk. The padding
takes a thousandth of its length on disk and is never unpacked: reading stops where the sample ends. Photos are stored
blocks of the deflate format, since they do not get smaller. Label maps are deflated: unpacking one takes less than half
the time that its PNG file takes. Zstandard would be faster, but needs a plug-in in every other reader, and decoding the
photo takes five to ten times as long as unpacking the label map does now.

A folder whose objects are told apart is packed with its instance maps; they are read with data.options.instances: true.

        objects = file["instances"][row, : height * width].reshape(height, width)  # 0 = none, 65535 = not told apart
    file["thing"]                                                # u8 [K], whether a class has objects

Damage is found: HDF5's checksums cover its structures (file format of HDF5 1.10) and the tables (fletcher32), and a
crc32 per sample covers photos and label maps. The file has no time stamps: packing twice gives the same bytes.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes.folder import CROWD_VALUE
from kappaseg_core.scenes.images import content_fingerprint, photo
from kappaseg_core.scenes.packing import FORMAT, VERSION, pack
from kappaseg_core.segments import CROWD
from kappaseg_core.structures import Scene

__all__ = ["Options", "PackedScenes", "open_scenes", "pack"]

_UNREADABLE = (OSError, KeyError, RuntimeError, ValueError)  # what h5py raises


@dataclass(frozen=True)
class Options:
    """What to read. Ignore values and id maps were applied when the file was made."""

    instances: bool = False
    """read the instance maps too, for panoptic segmentation; the file must have been packed with them"""


def open_scenes(root: str, split: str, options: Options) -> PackedScenes:
    """A split of the packed file `root`. Raises UserError for a missing, foreign or damaged file or split."""
    return PackedScenes(Path(root), split, instances=options.instances)


def split_names(root: str, options: Options) -> tuple[str, ...]:
    """The splits that were packed, sorted. Raises UserError for a missing, foreign or damaged file."""
    path = Path(root)
    file = _open(path)
    try:
        with file:
            return tuple(file["split"])
    except _UNREADABLE as error:
        raise _damaged(path, error) from None


class PackedScenes:
    """A split of a packed file. Each process opens its own handle at its first read; none is ever pickled or shared."""

    def __init__(self, path: Path, split: str, *, instances: bool = False) -> None:
        self.path, self.split = path, split
        self.things: tuple[bool, ...] | None = None
        self._opened: tuple[int, dict[str, h5py.Dataset]] | None = None
        self._fingerprint: str | None = None
        file = _open(path)
        try:
            with file:
                self._read_tables(file)
                if instances:
                    self._read_things(file)
        except _UNREADABLE as error:
            raise _damaged(path, error) from None

    def _read_tables(self, file: h5py.File) -> None:
        if self.split not in file["split"]:
            there = ", ".join(file["split"])
            raise UserError(
                f"split {self.split!r} is not in {self.path}; there are: {there}; choose one or pack it too"
            )
        self.class_names = tuple(name.decode() for name in file["class_name"][:])
        self._rows = file["split"][self.split][:]
        self.image_ids = tuple(name.decode() for name in file["image_id"][:][self._rows])
        self._ignore = int(file.attrs["ignore"])
        self._content = file.attrs["content"]
        self._sizes, self._shapes = (file[name][:][self._rows].tolist() for name in ("image_size", "mask_shape"))
        self._image_crcs, self._mask_crcs = (
            file[name][:][self._rows].tolist() for name in ("image_crc32", "mask_crc32")
        )
        self._sha256 = file["image_sha256"][:][self._rows]

    def _read_things(self, file: h5py.File) -> None:
        if "thing" not in file:
            raise UserError(
                f"{self.path} was packed without instance maps, and data.options.instances asks for them; pack the "
                "folder again with --data.options.instances instances"
            )
        self.things = tuple(file["thing"][:].astype(bool).tolist())
        self._instances_crcs = file["instances_crc32"][:][self._rows].tolist()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Scene:
        instances = None if self.things is None else self.instances(index)
        return Scene(self.image(index), self.mask(index), self.image_ids[index], instances)

    def image(self, index: int) -> np.ndarray:
        """The photo alone, u8 [3, H, W]."""
        return photo(self.image_bytes(index), f"image {self.image_ids[index]} in {self.path}")

    def mask(self, index: int) -> np.ndarray:
        """The label map alone, i32 [H, W], ids 0..K-1 or IGNORE."""
        stored = self._map("mask", index, self._mask_crcs[index])
        return np.where(stored == self._ignore, np.int32(IGNORE), stored.astype(np.int32))

    def instances(self, index: int) -> np.ndarray:
        """The instance map alone, i32 [H, W], numbers from 1, 0 or CROWD."""
        stored = self._map("instances", index, self._instances_crcs[index])
        return np.where(stored == CROWD_VALUE, np.int32(CROWD), stored.astype(np.int32))

    def image_bytes(self, index: int) -> bytes:
        """The photo's original file."""
        return self._sample("image", index, self._sizes[index], self._image_crcs[index])

    def fingerprint(self) -> str:
        """That of the folder it was packed from: sha256 over the sorted image ids and image files."""
        if self._fingerprint is None:
            contents = (row.tobytes().hex() for row in self._sha256)
            self._fingerprint = content_fingerprint(zip(self.image_ids, contents, strict=True))
        return self._fingerprint

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _map(self, name: str, index: int, crc: int) -> np.ndarray:
        """The stored values [H, W] of a label map or an instance map."""
        height, width = self._shapes[index]
        dtype = self._datasets()[name].dtype
        data = self._sample(name, index, height * width * dtype.itemsize, crc)
        return np.frombuffer(data, dtype).reshape(height, width)

    def _sample(self, name: str, index: int, size: int, crc: int) -> bytes:
        """The first `size` bytes of a chunk, checked."""
        try:
            stored = self._datasets()[name].id.read_direct_chunk((int(self._rows[index]), 0))[1]
            data = zlib.decompressobj().decompress(stored, size)
        except (*_UNREADABLE, zlib.error) as error:
            raise _damaged(self.path, error, f"{name} of sample {self.image_ids[index]}") from None
        if len(data) != size or zlib.crc32(data) != crc:
            raise _damaged(self.path, "wrong checksum", f"{name} of sample {self.image_ids[index]}")
        return data

    def _datasets(self) -> dict[str, h5py.Dataset]:
        """Photos and label maps through this process's own handle: a forked one must not read through its parent's."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = None
            file = _open(self.path)
            if file.attrs["content"] != self._content:
                raise UserError(f"{self.path} was replaced by another packed file while it was in use; start again")
            self._opened = os.getpid(), {name: file[name] for name in ("image", "mask", "instances") if name in file}
        return self._opened[1]


def _open(path: Path) -> h5py.File:
    """The file opened for reading, its format checked. Without a lock: a finished file is never written to."""
    if not path.is_file():
        raise UserError(f"packed file {path} does not exist; set data.root to a file made by `kappaseg data pack`")
    try:
        file = h5py.File(path, "r", locking=False)
        found = file.attrs.get("format"), file.attrs.get("version")
    except _UNREADABLE as error:
        raise _damaged(path, error) from None
    if found == (FORMAT, VERSION):
        return file
    file.close()
    if found[0] == FORMAT:
        raise UserError(f"{path} is packed in version {found[1]}, wanted {VERSION}; pack it again with this version")
    raise UserError(f"{path} was not made by `kappaseg data pack`, or not finished; pack the folder again")


def _damaged(path: Path, error: object, what: str = "packed file") -> UserError:
    reason = " ".join(str(error).split())
    place = path if what == "packed file" else f"{what} in {path}"
    return UserError(f"{place} is damaged, incomplete or no HDF5 file ({reason}); copy it anew or pack it again")
