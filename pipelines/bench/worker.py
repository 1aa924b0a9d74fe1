"""A process that does the step of one variant whenever it is asked.

python -m pipelines.bench.worker VARIANT     (as JSON; started by `turns`)
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import IO, Self

import torch

from kappaseg_core.config import build, to_plain
from kappaseg_core.errors import UserError
from kappaseg_core.placement import pick_device
from pipelines.bench.clocks import Clock, CpuClock, CudaClock, Taken
from pipelines.bench.steps import built
from pipelines.bench.variants import Variant

#: status of a process that a GPU's memory was too small for
OUT_OF_MEMORY = 3
#: a GPU is asked for so many steps at a time: first some that do not count
GPU_WARM, GPU_STEPS = 3, 10


class Ended(UserError):
    """A worker ended before it was told to. out_of_memory: whether that is why, as far as its status tells."""

    def __init__(self, name: str, status: int) -> None:
        self.out_of_memory = status in (OUT_OF_MEMORY, -signal.SIGKILL)
        super().__init__(f"the process of {name!r} ended with status {status}; what it said stands above")


class Worker:
    """The process of a variant, from the outside; `with` ends it. Ctrl-C does not reach it, so that it says nothing."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        command = [sys.executable, "-m", __spec__.name, json.dumps(to_plain(variant))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def step(self) -> Taken:
        """What a step takes. Raises Ended where the process is gone."""
        assert self.process.stdin and self.process.stdout
        try:
            print("step", file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise Ended(self.variant.name, self.process.wait()) from None
        line = self.process.stdout.readline()
        if not line:
            raise Ended(self.variant.name, self.process.wait())
        return Taken(**json.loads(line))


# In the process itself


def main(variant: Variant, asked: IO[str] = sys.stdin) -> int:
    """Do a step for every line that is read, and tell what it took; gives the exit status."""
    torch.manual_seed(0)
    device = pick_device(variant.device, 0)
    clock: Clock = CpuClock() if device.type == "cpu" else CudaClock()
    clock.start()  # so that it can be marked from now on
    try:
        step = built(variant, clock.mark)
        for _ in asked:
            taken = one_step(step, clock) if device.type == "cpu" else several_steps(step, clock)
            print(json.dumps(asdict(taken)), flush=True)
    except torch.OutOfMemoryError as error:
        print(error, file=sys.stderr)
        return OUT_OF_MEMORY
    return 0


def one_step(step: Callable[[], object], clock: Clock) -> Taken:
    clock.start()
    step()
    return clock.stop()


def several_steps(step: Callable[[], object], clock: Clock) -> Taken:
    """Medians of steps that follow each other, and the memory of the largest. What torch holds in reserve is given
    back afterwards: other processes have their turn on the same GPU."""
    for _ in range(GPU_WARM):
        step()
    taken = [one_step(step, clock) for _ in range(GPU_STEPS)]
    torch.cuda.empty_cache()
    return Taken(
        statistics.median(one.cpu for one in taken), statistics.median(one.seconds for one in taken),
        max(one.memory for one in taken),
        {part: statistics.median(one.parts[part] for one in taken) for part in taken[0].parts},
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(build(Variant, json.loads(sys.argv[1]))))
