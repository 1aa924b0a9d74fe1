"""What figures were made on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from kappaseg_core.errors import UserError
from kappaseg_core.placement import pick_device


def machine() -> dict[str, Any]:
    """Processor, cores, threads that torch uses, versions; gpu only where torch finds one."""
    model = next((line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")), "unknown")
    return {
        "cpu": model, "cores": os.cpu_count(), "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "system": platform.system(), "python": platform.python_version(), "torch": torch.__version__,
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }  # fmt: skip


def cpu_lines() -> list[str]:
    source = Path("/proc/cpuinfo")
    return source.read_text("utf-8").splitlines() if source.exists() else []


def free_gib(device: str) -> float:
    """Memory that is free on the device now: that of the GPU, or what Linux says a process could still have."""
    if device != "cpu":
        return torch.cuda.mem_get_info(torch.device(device))[0] / 2**30
    lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) / 2**20


def check_device(name: str) -> None:
    """Raise UserError for a device that is not there, or on which memory cannot be measured."""
    device = pick_device(name, 0)
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}, wanted cpu, cuda or cuda:N")
    if device.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise UserError("the memory of a step on a CPU is read from /proc, which Linux alone has; give --device cuda")
