"""Memory that nobody uses: of this machine, of the container, or of a GPU."""

from __future__ import annotations

from pathlib import Path

import torch

from kappaseg_core.errors import UserError

SYSTEM = Path("/proc/meminfo")  # Linux
LIMIT, USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")  # of a container


def free_mib(device: torch.device, flag: str) -> float:
    """In MiB.   flag: of the command line, which tells it otherwise. Raises UserError where it cannot be read."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    if not SYSTEM.exists():
        raise UserError(f"how much memory is free cannot be read on this system; give {flag} GIB")
    lines = dict(line.split(":") for line in SYSTEM.read_text("utf-8").splitlines())
    free = int(lines["MemAvailable"].split()[0]) / 1024
    if LIMIT.exists() and (limit := LIMIT.read_text("utf-8").strip()) != "max":
        free = min(free, (int(limit) - int(USED.read_text("utf-8"))) / 2**20)
    return free
