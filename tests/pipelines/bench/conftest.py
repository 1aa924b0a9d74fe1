"""A small network to measure, and a process that measures nothing."""

from __future__ import annotations

from typing import ClassVar

import pytest

from kappaseg_core.config import BackboneConfig
from pipelines.bench import turns
from pipelines.bench.clocks import Taken
from pipelines.bench.variants import Variant
from pipelines.bench.worker import Ended
from stage2_segmentation.config import HostConfig, Stage2Config

TINY = Stage2Config(
    backbone=BackboneConfig(kind="small_cnn", name="8"),
    host=HostConfig(options={"width": 8, "heads": 2, "depth": 1, "attention_dropout": 0.0}),
)


@pytest.fixture
def tiny() -> Variant:
    """Training with 3 of 7 labels on two images of 32 pixels a side."""
    return Variant("kept labels, ours", TINY, 7, 3, train=True, images=2, size=32)


class FakeWorker:
    """Takes its number of seconds, and notes when it was asked. fails: status to end with at the first step."""

    asked: ClassVar[list[str]] = []
    fails: ClassVar[dict[str, int]] = {}

    def __init__(self, variant: Variant) -> None:
        self.variant = variant

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self) -> Taken:
        if status := self.fails.get(self.variant.name):
            raise Ended(self.variant.name, status)
        self.asked.append(self.variant.name)
        passed = len(self.asked)
        return Taken(float(passed), passed / 2, 100.0 + passed, {"backbone": float(passed)})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    monkeypatch.setattr(turns, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "asked", [])
    monkeypatch.setattr(FakeWorker, "fails", {})
    return FakeWorker
