"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kappaseg_core.errors import UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into one clear line."""
    try:
        yield
    except OSError as error:
        reasons = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
        reason = reasons.get(error.errno or 0, (error.strerror or str(error)).lower())
        raise UserError(f"cannot write {path}: {reason}; free space or choose another --out or --to") from None


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, flush it to disk, rename it. Raises UserError."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            write(temporary)
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_atomic` for text."""
    write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8"))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def no_empty_folders(path: Path) -> Iterator[None]:
    """Where the block ends in an error, the folders that it made for `path` go again if they are empty."""
    made = folders_to_make(path)
    try:
        yield
    except BaseException:
        remove_empty(made)
        raise


def folders_to_make(path: Path) -> tuple[Path, ...]:
    """`path` and the parents of it that are not there yet, innermost first."""
    return tuple(folder for folder in (path, *path.parents) if not os.path.exists(folder))


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, in this order, up to the first that holds something."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
