"""Progress in the terminal: a live line with rate, remaining time and memory, or plain lines without a terminal."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 15.0  # between plain lines
STATUS = Path("/proc/self/status")  # Linux


class Meter:
    """Counts `total` things. Use as a context; call `advance` after each.

    rate is over this start of the program, so a resumed run shows its present speed.
    """

    def __init__(self, name: str, total: int, *, done: int = 0, unit: str = "step") -> None:
        self.name, self.total, self.done, self.unit = name, total, done, unit
        self.first, self.start = done, time.perf_counter()
        self.next_plain = self.start + PLAIN_SECONDS
        self.live: Progress | None = None
        self.console = Console(stderr=True)

    def __enter__(self) -> Meter:
        if self.console.is_terminal:
            self.live = Progress(
                TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
                console=self.console,
            )  # fmt: skip
            self.live.start()
            self.task = self.live.add_task(self.name, total=self.total, completed=self.done, speed="", note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        now = time.perf_counter()
        speed = (self.done - self.first) / max(now - self.start, 1e-9)
        shown = f"{speed:.3g} {self.unit}/s  {memory_mib():,} MiB"
        if self.live:
            self.live.update(self.task, completed=self.done, speed=shown, note=note)
        elif now >= self.next_plain or self.done == self.total:
            self.next_plain = now + PLAIN_SECONDS
            left = (self.total - self.done) / max(speed, 1e-9)
            say(f"{self.name}  {self.done}/{self.total}  {shown}  {left:.0f} s left  {note}".rstrip())


def say(line: str) -> None:
    """One plain line for people, on standard error, so that results on standard output stay clean."""
    print(line, file=sys.stderr, flush=True)


def memory_mib() -> int:
    """Largest memory of this process so far: on the GPU where one is in use, else resident.

    Linux: what getrusage says of a process starts with what the process that started it had, so it is not asked.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    if STATUS.exists():
        line = next(line for line in STATUS.read_text("utf-8").splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) / 1024)
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB here
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20)
