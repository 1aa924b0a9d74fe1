"""What there is to compute with: memory that is free, and how fast matrices are multiplied here."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from kappaseg_core.errors import UserError
from kappaseg_core.placement import pick_device
from pipelines.free_memory import free_mib
from pipelines.plan.base import base_mib

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}
SECONDS = 1.0  # of products
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices


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
    free = free_mib(chosen, "--memory") if gib is None else 1024 * gib
    return Machine(kind, free, 0 if kind == "cuda" else base_mib(), rates(chosen))


def rates(device: torch.device) -> dict[str, float]:
    """TFLOP/s of square matrix products in fp32 and bf16: the fastest of each, taken in turns."""
    side = SIDE[device.type]
    given = {name: torch.ones(side, side, device=device, dtype=kind) for name, kind in KINDS.items()}
    for matrix in given.values():
        product_seconds(matrix)  # the first one makes kernels
    fastest, start = dict.fromkeys(given, math.inf), time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        for name, matrix in given.items():
            fastest[name] = min(fastest[name], product_seconds(matrix))
    return {name: 2 * side**3 / seconds / 1e12 for name, seconds in fastest.items()}


def product_seconds(matrix: Tensor) -> float:
    start = time.perf_counter()
    matrix @ matrix
    finish(matrix.device)
    return time.perf_counter() - start


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
