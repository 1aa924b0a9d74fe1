"""A step's process: how it is started, and what its end means. Ray runs what is here elsewhere, so it stands alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: words of a step's process after the interpreter; OUT, ID and the PID of its parent are added
STEP = ("-m", "pipelines.benchmark.steps")
MISTAKE = 2
TAIL_BYTES = 8192


def launch(command: Sequence[str], out: str, name: str, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process of a step. settings: environment variables beside those of this process."""
    log = log_of(out, name)
    with log.open("ab") as file:
        file.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')}  {name}\n".encode())
        file.flush()
        return subprocess.Popen(
            [sys.executable, *command, out, name, str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **settings},
        )  # fmt: skip


def run_to_end(command: Sequence[str], out: str, name: str, settings: Mapping[str, str]) -> tuple[int, str]:
    """Do a step in a process of its own; gives its exit status and, of a failure, the reason."""
    if not os.path.exists(os.path.join(out, "plan.json")):
        return MISTAKE, f"{os.uname().nodename} cannot see {out}; --out has to be a folder that all machines share"
    return outcome(launch(command, out, name, settings).wait(), out, name)


def outcome(status: int, out: str, name: str) -> tuple[int, str]:
    """A process's exit status with its reason in one line."""
    if status == 0:
        return 0, ""
    if status < 0:
        memory = ", perhaps for want of memory" if -status == signal.SIGKILL else ""
        return 1, f"killed by {signal.Signals(-status).name}{memory}"
    lines = [line for line in tail(log_of(out, name)).splitlines() if line.strip()]
    return status, lines[-1].strip().removeprefix("kappaseg: ") if lines else f"exit status {status}"


def log_of(out: str, name: str) -> Path:
    return Path(out, "steps", f"{name}.log")


def tail(file: Path) -> str:
    """The end of a log; nothing where there is none."""
    if not file.exists():
        return ""
    with file.open("rb") as handle:
        handle.seek(max(0, handle.seek(0, os.SEEK_END) - TAIL_BYTES))
        return handle.read().decode("utf-8", errors="replace")
