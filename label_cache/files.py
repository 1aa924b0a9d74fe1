"""Writing files so that a reader, or a second start after a kill, sees all of a file or nothing of it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
from pathlib import Path

from label_cache.errors import CacheError, reason

_HOST = re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.tmp-(?P<host>[A-Za-z0-9._]*)-(?P<pid>\d+)-[0-9a-f]{8}")


def write_whole(path: Path, data: bytes) -> None:
    """Put bytes into a file by way of a temporary one beside it: write, fsync, rename, fsync the directory.

    Raises CacheError where the disk is full or the directory cannot be written; the temporary file is gone then and
    what was at `path` before is untouched.
    """
    temporary = temporary_beside(path)
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise CacheError(
            f"cannot write {path}: {reason(error)}; free space or choose another directory, then start again"
        ) from error


def temporary_beside(path: Path) -> Path:
    """A name in the same directory that tells which process of which machine is writing."""
    return path.with_name(f".{path.name}.tmp-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}")


def remove_dead(directory: Path) -> None:
    """Delete the temporary files and folders of processes of this machine that no longer run."""
    for path, host, process in _temporaries(directory):
        if host == _HOST and not _runs(process):
            remove(path)


def remove_temporaries(directory: Path) -> None:
    """Delete all temporary part files, whoever wrote them: for the moment when nobody else may be writing."""
    for path, _, _ in _temporaries(directory):
        if path.is_file():
            remove(path)


def remove(path: Path) -> None:
    """Delete a file or a folder; no error where it is already gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make renames and deletions in a directory survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporaries(directory: Path) -> list[tuple[Path, str, int]]:
    found = [(path, _TEMPORARY.fullmatch(path.name)) for path in sorted(directory.iterdir())]
    return [(path, match["host"], int(match["pid"])) for path, match in found if match]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True  # somebody else's process, or no number of a process: not ours to judge
    return True
