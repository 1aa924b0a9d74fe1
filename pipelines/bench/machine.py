"""What figures were made on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kappaseg_core.errors import UserError
from kappaseg_core.placement import pick_device
from pipelines.benchmark import inputs
from pipelines.free_memory import free_mib


def machine() -> dict[str, Any]:
    """What is known without torch, and threads that torch uses; gpu only where torch finds one."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {**inputs.machine(), "threads": torch.get_num_threads(), **gpu}


def free_gib(device: str) -> float:
    """Memory that is free on the device now. Raises UserError where it cannot be read."""
    return free_mib(torch.device(device), "--limit") / 1024


def check_device(name: str) -> None:
    """Raise UserError for a device that is not there, or on which memory cannot be measured."""
    device = pick_device(name, 0)
    if name == "auto" or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}, wanted cpu, cuda or cuda:N")
    if device.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise UserError("the memory of a step on a CPU is read from /proc, which Linux alone has; give --device cuda")
