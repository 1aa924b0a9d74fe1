"""What a step takes on a CPU and on a GPU: time, memory, and how the time is spread over its parts."""

from __future__ import annotations

import ctypes
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

STATUS, STATM, FORGET = (Path("/proc/self") / name for name in ("status", "statm", "clear_refs"))


@dataclass(frozen=True)
class Taken:
    """cpu: processor seconds over all threads.   seconds: that passed; on a GPU between events of its stream.
    memory: largest in MiB beyond what was held before.   parts: seconds of each, processor or GPU."""

    cpu: float
    seconds: float
    memory: float
    parts: dict[str, float]


class Clock(Protocol):
    """start, mark after every part, stop."""

    def start(self) -> None: ...

    def mark(self, part: str) -> None:
        """The time since the last mark is that of `part`."""

    def stop(self) -> Taken: ...


class CpuClock:
    """Memory is resident memory, which Linux alone tells the largest of."""

    def start(self) -> None:
        trim()
        self.held = resident_mib()
        FORGET.write_text("5")  # the largest resident memory is counted anew
        self.marks: list[tuple[str, float]] = []
        self.began, self.wall = time.process_time(), time.perf_counter()

    def mark(self, part: str) -> None:
        self.marks.append((part, time.process_time()))

    def stop(self) -> Taken:
        cpu, wall = time.process_time() - self.began, time.perf_counter() - self.wall
        parts, last = dict[str, float](), self.began
        for part, now in self.marks:
            parts[part] = parts.get(part, 0.0) + now - last
            last = now
        memory = peak_mib() - self.held
        trim()  # others have their turn now
        return Taken(cpu, wall, memory, parts)


class CudaClock:
    """Times between events of the stream; memory of torch's allocator. cuda: torch.cuda, or what stands for it."""

    def __init__(self, cuda: ModuleType | Any = torch.cuda) -> None:
        self.cuda = cuda

    def event(self) -> Any:
        event = self.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        self.cuda.synchronize()
        self.held = self.cuda.memory_allocated()
        self.cuda.reset_peak_memory_stats()
        self.marks: list[tuple[str, Any]] = []
        self.cpu, self.began = time.process_time(), self.event()

    def mark(self, part: str) -> None:
        self.marks.append((part, self.event()))

    def stop(self) -> Taken:
        end = self.event()
        self.cuda.synchronize()
        parts, last = dict[str, float](), self.began
        for part, event in self.marks:
            parts[part] = parts.get(part, 0.0) + last.elapsed_time(event) / 1e3
            last = event
        memory = (self.cuda.max_memory_allocated() - self.held) / 2**20
        return Taken(time.process_time() - self.cpu, self.began.elapsed_time(end) / 1e3, memory, parts)


def trim() -> None:
    """Give back what the C library holds in reserve."""
    ctypes.CDLL(None).malloc_trim(0)


def resident_mib() -> float:
    return int(STATM.read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_mib() -> float:
    return int(next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 2**10
