"""One process at a time. The lock is the operating system's, so it ends with its process, however that ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kappaseg_core.errors import UserError
from kappaseg_core.files import writing

POLL_SECONDS = 0.1
#: what network file systems without locks answer
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


@contextmanager
def locked(path: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file at `path` (made where it is not there).

    Raises UserError that names the process which holds it, when it still does after `wait_seconds`.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    with file:
        until = time.monotonic() + wait_seconds
        while not taken(file.fileno(), path):
            if time.monotonic() >= until:
                raise UserError(
                    f"{path.parent} is in use by {holder(path)}; wait for it to end, or name another folder"
                )
            time.sleep(POLL_SECONDS)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%F %T")}))
        file.flush()
        yield


def taken(descriptor: int, path: Path) -> bool:
    """Whether the lock is ours now. A note says so where a file system has no locks; then everybody gets it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        note = f"note: the file system of {path.parent} has no locks; see that one process at a time works there"
        print(note, file=sys.stderr, flush=True)
    return True


def holder(path: Path) -> str:
    """Who wrote the lock file, in words."""
    try:
        known = json.loads(path.read_text("utf-8"))
        return f"process {known['pid']} on {known['host']} since {known['since']}"
    except (OSError, ValueError, KeyError):  # not written yet
        return "another process"
