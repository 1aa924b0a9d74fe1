"""One process at a time. The lock is the operating system's, so it ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kappaseg_core.errors import UserError
from kappaseg_core.files import writing

POLL_SECONDS = 0.1


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
        while not taken(file.fileno()):
            if time.monotonic() >= until:
                raise UserError(
                    f"{path.parent} is in use by {holder(path)}; wait for it to end, or choose another --out"
                )
            time.sleep(POLL_SECONDS)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%F %T")}))
        file.flush()
        yield


def taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(path: Path) -> str:
    """Who wrote the lock file, in words."""
    try:
        known = json.loads(path.read_text("utf-8"))
        return f"process {known['pid']} on {known['host']} since {known['since']}"
    except (OSError, ValueError, KeyError):  # not written yet
        return "another process"
