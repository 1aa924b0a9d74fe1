"""The steps of a benchmark: what each does, on what it stands, where its product lies; and plan.json, which says so.

features-TARGET-HASH-seed-S      features of a frozen backbone, for all that train on them   OUT/seed-S/features
stage1-RANKER-seed-S             a classifier              OUT/seed-S/RANKER/stage1
rank-RANKER[-folds-N]-seed-S     its label cache           OUT/seed-S/RANKER/labels[-folds-N]
train-SCHEME-seed-S              a segmentation network    OUT/seed-S/SCHEME
measure-SCHEME-seed-S[-kappa-N]  its measurement           OUT/measures/SCHEME-seed-S[-kappa-N]
cost                             the networks of all schemes timed side by side, first seed   OUT/cost
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kappaseg_core.config import fingerprint, to_plain
from kappaseg_core.errors import UserError
from kappaseg_core.files import write_text
from pipelines.benchmark.config import BenchmarkConfig, Settings
from pipelines.benchmark.inputs import Inputs, commit, installed, machine

#: settings that may differ without a step's result being another one (paths: what they lead to is compared)
FREE = (
    "out", "name", "classifier", "cache", "data.root", "backbone.weights", "source.cache", "loop.loader_workers",
    "loop.loader_start", "loop.loader_prefetch", "loop.save_every",
)  # fmt: skip
#: settings that there were not always. At null or false a step does what it did without them, and is done where it was
#: done then
LATER = (
    "init", "head.project", "head.self_attention", "head.groups", "head.grouping", "head.group_seed", "head.shortlist",
    "head.shortlist_by", "head.shortlist_weight", "loss.negatives", "labels.loss.negatives", "backbone.checkpointing",
    "loop.compile",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One piece of work.

    folder: where its product lies, below OUT.   settings: of the function that does it, resolved.
    needs: ids of the steps that it stands on.   fingerprint: of settings, inputs and all that it stands on.
    """

    id: str
    kind: str
    folder: str
    settings: Settings
    needs: tuple[str, ...] = ()
    scheme: str | None = None
    ranker: str | None = None
    seed: int | None = None
    kappa: int | None = None
    fingerprint: str = ""

    @property
    def is_alone(self) -> bool:
        """Whether nothing may run beside it, because it takes times."""
        return self.kind == "cost"

    @property
    def is_between(self) -> bool:
        """Whether its product is there for other steps only, and not missed once these are done."""
        return self.kind == "features"


@dataclass
class Plan:
    """All steps by id, each after those that it needs.

    schemes: name → what tables say of it.   notes: what the user should know, a line each.
    """

    config: BenchmarkConfig
    inputs: Inputs
    out: Path
    steps: dict[str, Step] = field(default_factory=dict)
    schemes: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, step: Step, *, decides: Any = None, weights: str | None = None) -> Step:
        """The step with its fingerprint; a step of that id is added once.

        decides: what its result depends on; None = its settings.   weights: sha256 of the weight file that it reads.
        """
        own = without(step.settings, FREE, LATER) if decides is None else decides
        below = sorted(self.steps[need].fingerprint for need in step.needs)
        made = fingerprint([step.kind, step.folder, own, self.inputs.data, weights, below])
        return self.steps.setdefault(step.id, replace(step, fingerprint=made))

    def above(self, step: Step) -> Iterator[Step]:
        """The steps that need this one directly."""
        return (other for other in self.steps.values() if step.id in other.needs)

    def write(self) -> None:
        """plan.json: what the steps' processes, the results and people read."""
        values = {
            "name": self.config.name, "commit": commit(), "version": installed("kappaseg"), "machine": machine(),
            "config": to_plain(self.config), "baseline": self.config.baseline, "data": asdict(self.inputs),
            "schemes": self.schemes, "steps": {step.id: stored(step) for step in self.steps.values()},
        }  # fmt: skip
        write_text(self.out / "plan.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def stored(step: Step) -> dict[str, Any]:
    return {name: value for name, value in asdict(step).items() if name != "id"}


def read_step(out: Path, name: str) -> Step:
    """A step of the plan in OUT. Raises UserError where there is no such plan or step."""
    file = out / "plan.json"
    try:
        values = json.loads(file.read_text("utf-8"))["steps"]
    except FileNotFoundError:
        raise UserError(f"{file} is not there; run kappaseg benchmark CONFIG --out {out}") from None
    if name not in values:
        raise UserError(f"{file} has no step {name!r}; it has: {', '.join(values)}")
    return Step(id=name, **{**values[name], "needs": tuple(values[name]["needs"])})


def without(settings: Settings, names: Sequence[str], unset: Sequence[str] = ()) -> Settings:
    """Nested settings without those of these dotted names, and without those of `unset` that are null or false."""
    left: Settings = {}
    for key, value in settings.items():
        if key in names or (key in unset and (value is None or value is False)):  # 0 may say more than null
            continue
        left[key] = without(value, inside(key, names), inside(key, unset)) if isinstance(value, dict) else value
    return left


def inside(group: str, names: Sequence[str]) -> list[str]:
    """The dotted names that are in a group, as they are called there."""
    return [name.removeprefix(f"{group}.") for name in names if name.startswith(f"{group}.")]
