"""benchmarks/same_numbers.py: ours computes what the published way does, and a difference would show."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import ModuleType

import pytest

from stage2_segmentation.task import SegmentTask

KAPPAS = [None, 5]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Three steps on small scenes."""
    module = importlib.import_module("same_numbers")
    small = {"classes": 12, "size": 48, "train": 6, "val": 2}
    for name, value in {"CLASSES": 12, "SIZE": 48, "IMAGES": 2, "STEPS": 3}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "DATA", replace(module.DATA, options=small))
    return module


@pytest.mark.parametrize("kappa", KAPPAS)
def test_losses_weights_maps_and_miou_are_those_of_the_published_way(program: ModuleType, kappa: int | None) -> None:
    found = program.compared(kappa)
    assert found["loss_difference"] < 1e-5 and found["weight_difference"] < 1e-5
    assert found["equal_pixels"] > 0.999 and found["own_miou"] == pytest.approx(found["miou"], abs=1e-4)
    assert found["last_loss"] != found["first_loss"] > 1


@pytest.mark.parametrize("kappa", KAPPAS)
def test_another_loss_would_be_seen(program: ModuleType, kappa: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = SegmentTask.forward
    monkeypatch.setattr(SegmentTask, "forward", lambda self, batch: (1.001 * forward(self, batch)[0], {}))
    assert program.compared(kappa)["loss_difference"] > 1e-4
