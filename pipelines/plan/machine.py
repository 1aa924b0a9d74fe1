"""What there is to compute with: memory that is free, and how fast matrices are multiplied here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from kappaseg_core.errors import UserError
from kappaseg_core.placement import AUTOCAST, pick_device
from pipelines.plan.base import base_mib

SECONDS = 0.4  # of products, for each precision
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices
PROCESS = Path("/proc/meminfo")  # Linux
LIMIT, USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")  # of a container


@dataclass(frozen=True)
class Machine:
    """device: cpu or cuda.   memory_mib: free, or as told.   base_mib: what a training process holds of it before it
    has a network.   tflops: 10¹² operations a second in a product of matrices, by precision."""

    device: str
    memory_mib: float
    base_mib: int
    tflops: dict[str, float]

    @property
    def gpu(self) -> bool:
        return self.device != "cpu"


def machine(device: str, gib: float | None) -> Machine:
    """This one.   gib: memory to plan for; None = what is free. Raises UserError where that cannot be told."""
    chosen = pick_device(device, 0)
    kind = chosen.type
    if gib is not None and gib <= 0:
        raise UserError(f"--memory {gib:g}, wanted GiB above 0")
    free = free_mib(chosen) if gib is None else 1024 * gib
    rates = {precision: rate(chosen, precision) for precision in ("fp32", "bf16")}
    return Machine(kind, free, 0 if kind == "cuda" else base_mib(), rates)


def free_mib(device: torch.device) -> float:
    """Memory that nobody uses: of the GPU, or of this machine or container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    if not PROCESS.exists():
        raise UserError("how much memory is free cannot be read on this system; give --memory GIB")
    lines = dict(line.split(":") for line in PROCESS.read_text("utf-8").splitlines())
    free = int(lines["MemAvailable"].split()[0]) / 1024
    if LIMIT.exists() and (limit := LIMIT.read_text("utf-8").strip()) != "max":
        free = min(free, (int(limit) - int(USED.read_text("utf-8"))) / 2**20)
    return free


def rate(device: torch.device, precision: str) -> float:
    """TFLOP/s of square matrix products, as many as fit into the time."""
    side = SIDE[device.type]
    given = torch.ones(side, side, device=device, dtype=AUTOCAST.get(precision, torch.float32))
    given @ given
    finish(device)
    products, start = 0, time.perf_counter()
    while products == 0 or time.perf_counter() - start < SECONDS:
        given @ given
        finish(device)
        products += 1
    return 2 * side**3 * products / (time.perf_counter() - start) / 1e12


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
