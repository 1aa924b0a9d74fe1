"""Clocks: what a step took, and its parts."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from pipelines.bench.clocks import CpuClock, CudaClock


def test_memory_is_the_largest_of_the_step_and_not_what_was_held_before() -> None:
    held = torch.ones(2**22)
    clock = CpuClock()
    clock.start()
    torch.ones(2**24).sum()  # 64 MiB, given back at once
    taken = clock.stop()
    assert 60 < taken.memory < 90
    clock.start()
    assert clock.stop().memory < 8
    assert len(held)


def test_parts_of_the_same_name_add_up_to_the_whole() -> None:
    clock = CpuClock()
    clock.start()
    for part in ("first", "second", "first"):
        spin(0.01)
        clock.mark(part)
    taken = clock.stop()
    assert taken.parts["first"] > 1.5 * taken.parts["second"] > 0.01
    assert sum(taken.parts.values()) == pytest.approx(taken.cpu, abs=5e-3)


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


class FakeCuda:
    """A GPU on which an event passes every 250 milliseconds."""

    def __init__(self) -> None:
        self.events, self.allocated, self.waited = 0, 3 * 2**20, 0

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing
        return FakeEvent(self)

    def synchronize(self) -> None:
        self.waited += 1

    def memory_allocated(self) -> int:
        return self.allocated

    def max_memory_allocated(self) -> int:
        return self.allocated + 2**20

    def reset_peak_memory_stats(self) -> None:
        pass


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def record(self) -> None:
        self.at = self.cuda.events
        self.cuda.events += 1

    def elapsed_time(self, later: FakeEvent) -> float:
        return 250.0 * (later.at - self.at)


def test_a_gpu_is_timed_between_its_events() -> None:
    cuda = FakeCuda()
    clock = CudaClock(cuda)
    clock.start()
    clock.mark("backbone")
    clock.mark("loss")
    taken = clock.stop()
    assert (taken.seconds, taken.parts) == (0.75, {"backbone": 0.25, "loss": 0.25})
    assert taken.memory == 1.0
    assert cuda.waited == 2  # before the first event, and before times are read
