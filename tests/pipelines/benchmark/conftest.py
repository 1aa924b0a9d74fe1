"""A benchmark of a few schemes, with steps that only pretend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.benchmark import steps
from pipelines.benchmark.config import load_benchmark
from pipelines.benchmark.expand import expand
from pipelines.benchmark.inputs import Inputs
from pipelines.benchmark.plan import Plan, Step
from pipelines.benchmark.run import Local, environment
from pipelines.benchmark.schedule import Ended, States, run_steps
from tests.pipelines.benchmark import fake_steps
from tests.pipelines.conftest import SETTINGS

FAKE = (fake_steps.__file__,)
SCHEMES: dict[str, Any] = {
    "baseline": {"stage2": {"source.train": "complete"}},
    "independent": {"ranker": "q2l"},
    "small": {"extends": "independent", "stage2": {"source.kappa": 1}},
    "joint": {"stage2": {"source.train": "joint", "labels.head": "pooled"}},
    "told": {"of": "baseline", "stage2": {"source.test": "oracle"}},
}


@dataclass(frozen=True)
class Bench:
    """A benchmark's settings and folder, below one folder."""

    home: Path

    @property
    def out(self) -> Path:
        return self.home / "out"

    @property
    def file(self) -> Path:
        return self.home / "benchmark.yaml"

    def write(self, **values: Any) -> None:
        """Write the settings, those given here in place of the usual ones."""
        usual = {"rankers": {"q2l": {}}, "schemes": SCHEMES, "out": str(self.out)}
        self.file.write_text(yaml.safe_dump({**usual, **values}, sort_keys=False))

    def plan(self, *settings: tuple[str, str], classes: int = 4, data: str = "images") -> Plan:
        return expand(load_benchmark(self.file, settings), Inputs(data, classes), self.out, self.home)

    def order(self, **orders: str) -> None:
        """What fake steps are to do: name (with _ for -) → order."""
        text = json.dumps({name.replace("_", "-"): order for name, order in orders.items()})
        (self.home / "orders.json").write_text(text)

    def calls(self) -> list[str]:
        """The fake steps that were started since this was last asked, in order."""
        file = self.home / "calls.txt"
        found = file.read_text().split() if file.exists() else []
        file.unlink(missing_ok=True)
        return found

    def run(self, plan: Plan) -> States:
        """Do the plan's steps in this process; they only pretend."""
        self.prepare(plan)
        with InProcess(plan, fake_steps.FAKES) as runner:
            return run_steps(plan, runner, lambda states: None)

    def run_apart(self, plan: Plan) -> States:
        """The same in processes of their own, which can be killed."""
        self.prepare(plan)
        with Local(plan, environment(1), FAKE) as runner:
            return run_steps(plan, runner, lambda states: None)

    def prepare(self, plan: Plan) -> None:
        (self.out / "steps").mkdir(parents=True, exist_ok=True)
        plan.write()


#: the real steps, with times taken for a moment only
BRIEF: dict[str, steps.Work] = {**steps.WORK, "cost": partial(steps.time_all, seconds=1.0)}


class InProcess:
    """Runs steps in this process: everything but the processes, without the time that these take to start."""

    def __init__(self, plan: Plan, work: Mapping[str, steps.Work] = BRIEF) -> None:
        self.out, self.work = plan.out, work
        self.over: list[Ended] = []

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *error: object) -> None: ...

    def has_room(self) -> bool:
        return not self.over

    def start(self, step: Step) -> None:
        self.over.append(Ended(step.id, steps.main([str(self.out), step.id], self.work)))

    def ended(self, wait_seconds: float) -> list[Ended]:
        over, self.over = self.over, []
        return over


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    for name, values in SETTINGS.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    made.write()
    return made


def ids(plan: Plan, *kinds: str) -> list[str]:
    return [step.id for step in plan.steps.values() if not kinds or step.kind in kinds]
