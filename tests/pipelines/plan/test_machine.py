"""What a plan knows of the machine."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch

from kappaseg_core.errors import UserError
from pipelines.plan import machine

CPU = torch.device("cpu")


def test_rates_are_those_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may use the machine too: every second product takes ten times as long."""
    taken = {torch.float32: cycle([20.0, 2.0]), torch.bfloat16: cycle([0.5, 5.0])}
    monkeypatch.setattr(machine, "SIDE", {"cpu": 10})
    monkeypatch.setattr(machine, "SECONDS", 0.05)
    monkeypatch.setattr(machine, "product_seconds", lambda matrix: next(taken[matrix.dtype]))
    found = machine.rates(CPU)
    assert found == {"fp32": pytest.approx(2e3 / 2.0 / 1e12), "bf16": pytest.approx(2e3 / 0.5 / 1e12)}


def test_memory_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "base_mib", lambda: 700)
    monkeypatch.setattr(machine, "rates", lambda device: {})
    assert machine.machine("cpu", 2.5).memory_mib == 2560
    with pytest.raises(UserError, match="wanted GiB above 0"):
        machine.machine("cpu", -1.0)


@pytest.mark.slow
def test_a_process_with_everything_imported_holds_hundreds_of_mebibytes() -> None:
    from pipelines.plan.base import base_mib

    assert 200 < base_mib() < 3000
