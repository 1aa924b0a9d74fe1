"""Memory that nobody uses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kappaseg_core.errors import UserError
from pipelines import free_memory

CPU = torch.device("cpu")


def test_free_memory_is_that_of_the_system_or_of_the_container_if_that_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, limit, used = (tmp_path / name for name in ("meminfo", "max", "current"))
    system.write_text("MemTotal:  9000 kB\nMemAvailable:  4194304 kB\n")
    used.write_text(f"{2**30}\n")
    for name, file in (("SYSTEM", system), ("LIMIT", limit), ("USED", used)):
        monkeypatch.setattr(free_memory, name, file)
    assert free_memory.free_mib(CPU, "--limit") == 4096
    limit.write_text("max\n")
    assert free_memory.free_mib(CPU, "--limit") == 4096
    limit.write_text(f"{3 * 2**30}\n")
    assert free_memory.free_mib(CPU, "--limit") == 2048
    system.unlink()
    with pytest.raises(UserError, match="give --limit GIB"):
        free_memory.free_mib(CPU, "--limit")
