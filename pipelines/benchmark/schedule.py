"""Which step runs when: each after those that it stands on, with retries, and nothing that is done already."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from pipelines.benchmark import child, ledger
from pipelines.benchmark.plan import Plan, Step

TICK_SECONDS = 0.25

#: queued: handed to the runner, which has no process for it yet
Status = Literal["waiting", "queued", "running", "done", "reused", "failed", "blocked"]
STARTED: tuple[Status, ...] = ("queued", "running")


@dataclass(frozen=True)
class Ended:
    """A step's process ended. status: 0 done, 2 a user's mistake, else a fault.   reason: of a failure, one line."""

    id: str
    status: int
    reason: str = ""


class Runner(Protocol):
    """Where the steps' processes run. Use as a context: what still runs at its end is stopped."""

    def __enter__(self) -> Runner: ...

    def __exit__(self, *error: object) -> None: ...

    def has_room(self) -> bool: ...

    def start(self, step: Step) -> None: ...

    def ended(self, wait_seconds: float) -> list[Ended]:
        """What has ended since the last call; waits up to so long for something."""
        ...


@dataclass
class State:
    """How far a step is. reason: why it failed, or why it was started again.

    began: when its process did, or before that when it was handed over, on the monotonic clock.   took: seconds.
    logged: bytes of its log when it was handed over, to which its process adds a line first of all.
    """

    status: Status = "waiting"
    reason: str = ""
    attempts: int = 0
    mistake: bool = False
    began: float = 0.0
    took: float = 0.0
    logged: int = 0


States = dict[str, State]
#: is called after every change, and now and then between
Show = Callable[[States], None]


def run_steps(plan: Plan, runner: Runner, show: Show) -> States:
    """Do what is to be done; gives where every step ended up.

    What stands on a failed step is blocked, everything else is done.
    """
    return Scheduler(plan, runner, show).run()


class Scheduler:
    def __init__(self, plan: Plan, runner: Runner, show: Show) -> None:
        self.plan, self.runner, self.show = plan, runner, show
        self.states: States = {name: State() for name in plan.steps}
        self.wanted_again = ledger.wanted_again(plan)

    def run(self) -> States:
        while True:
            self.settle()
            self.note_begun()
            self.show(self.states)
            if not self.having(*STARTED):
                return self.states
            for ended in self.runner.ended(TICK_SECONDS):
                self.take(ended)

    def having(self, *statuses: Status) -> list[Step]:
        return [step for step in self.plan.steps.values() if self.states[step.id].status in statuses]

    def settle(self) -> None:
        """Reuse, block and start what can be, in the plan's order."""
        for step in self.having("waiting"):
            needs = {self.states[need].status for need in step.needs}
            if needs & {"failed", "blocked"}:
                self.states[step.id].status = "blocked"
            elif needs <= {"done", "reused"} and self.is_done(step):
                self.states[step.id].status = "reused"
        for step in self.having("waiting"):
            if self.is_ready(step) and self.runner.has_room() and (not step.is_alone or self.is_last()):
                self.start(step)

    def is_done(self, step: Step) -> bool:
        return step.id not in self.wanted_again and ledger.is_done(self.plan.out, step)

    def is_ready(self, step: Step) -> bool:
        return all(self.states[need].status in ("done", "reused") for need in step.needs)

    def is_last(self) -> bool:
        """Whether nothing runs and nothing else can: the moment for a step that takes times."""
        return not self.having(*STARTED) and all(s.is_alone for s in self.having("waiting") if self.is_ready(s))

    def start(self, step: Step) -> None:
        state = self.states[step.id]
        state.status, state.began, state.attempts = "queued", time.monotonic(), state.attempts + 1
        state.logged = ledger.log_bytes(self.plan.out, step.id)
        self.runner.start(step)

    def note_begun(self) -> None:
        """Tell the steps that have a process by now from those that wait in the runner's queue."""
        for step in self.having("queued"):
            state = self.states[step.id]
            if ledger.log_bytes(self.plan.out, step.id) > state.logged:
                state.status, state.began = "running", time.monotonic()

    def take(self, ended: Ended) -> None:
        """Note how a step ended; a fault is tried again, a mistake is not."""
        state = self.states[ended.id]
        state.took, state.reason = time.monotonic() - state.began, ended.reason
        if ended.status == 0:
            state.status, state.reason = "done", ""
        elif ended.status == child.MISTAKE or state.attempts >= self.plan.config.attempts:
            state.status, state.mistake = "failed", ended.status == child.MISTAKE
        else:
            self.start(self.plan.steps[ended.id])
