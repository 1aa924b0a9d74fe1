"""Where every step stands, in the terminal: a live table, or a line for every change where there is no terminal."""

from __future__ import annotations

import re
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.benchmark import child
from pipelines.benchmark.plan import Plan
from pipelines.benchmark.schedule import State, States, Status

SHOW_SECONDS = 1.0  # between two looks at the logs
MARKS: dict[Status, tuple[str, str]] = {
    "waiting": ("·", "dim"), "queued": ("◦", "cyan"), "running": ("▶", "bold cyan"), "done": ("✓", "green"),
    "reused": ("✓", "dim green"), "failed": ("✗", "bold red"), "blocked": ("–", "yellow"),
}  # fmt: skip
#: a line of progress, as kappaseg_core.progress prints it: 120/400  3.2 step/s  512 MiB  90 s left
PROGRESS = re.compile(r"(\d+)/(\d+)  (\S+ \w+/s)  .*?(\d+) s left")


class View:
    """Shows the steps of a plan. Use as a context; call it with their states."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.console = plan, Console(stderr=True)
        self.live: Live | None = None
        self.shown: dict[str, tuple[Status, int]] = {}
        self.next = 0.0

    def __enter__(self) -> View:
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False, vertical_overflow="ellipsis")
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, states: States) -> None:
        now = {name: (state.status, state.attempts) for name, state in states.items()}
        changed = [name for name in now if self.shown.get(name, ("waiting", 0)) != now[name]]
        self.shown = now
        if self.live is None:
            for name in changed:
                if states[name].status != "queued":
                    print(line(name, states[name]), file=sys.stderr, flush=True)
        elif changed or time.monotonic() >= self.next:
            self.next = time.monotonic() + SHOW_SECONDS
            self.live.update(self.table(states), refresh=True)

    def table(self, states: States) -> Table:
        """All steps where they fit, else those that are not over, with the others counted."""
        room = self.console.size.height - 3
        rows = (
            list(states) if len(states) <= room else [n for n, s in states.items() if s.status in ("running", "failed")]
        )
        table = Table.grid(padding=(0, 2))
        for name in rows[:room]:
            mark, style = MARKS[states[name].status]
            table.add_row(Text(mark, style), Text(name, style), Text(self.words(name, states[name]), "default"))
        table.add_row("", Text(counted(states), "bold"), "")
        return table

    def words(self, name: str, state: State) -> str:
        again = f"attempt {state.attempts} after: {state.reason}  " if state.attempts > 1 and state.reason else ""
        if state.status == "running":
            return again + (progress(str(self.plan.out), name) or f"{time.monotonic() - state.began:.0f} s")
        return said(state)


def line(name: str, state: State) -> str:
    """A step's change in words."""
    if state.status == "running" and state.attempts > 1:
        return f"{name}: running, attempt {state.attempts}, after: {state.reason}"
    return f"{name}: {said(state)}".rstrip()


def said(state: State) -> str:
    """A step's state in words."""
    if state.status == "done":
        return f"done in {state.took:.0f} s"
    if state.status == "failed":
        return f"failed: {state.reason}"
    return {"blocked": "not done: what it stands on failed", "waiting": ""}.get(state.status, state.status)


def progress(out: str, name: str) -> str:
    """Share done, rate and remaining time, from the last such line of a step's log; empty before there is one."""
    lines = child.tail(child.log_of(out, name)).splitlines()
    start = max((i for i, text in enumerate(lines) if text.startswith("== ")), default=0)
    for text in reversed(lines[start:]):
        if found := PROGRESS.search(text):
            done, total, rate, left = found.groups()
            return f"{done}/{total}  {rate}  {left} s left"
    return ""


def counted(states: States) -> str:
    """How many steps are in which state."""
    counts: dict[Status, int] = {}
    for state in states.values():
        counts[state.status] = counts.get(state.status, 0) + 1
    return "  ".join(f"{count} {status}" for status, count in counts.items())
