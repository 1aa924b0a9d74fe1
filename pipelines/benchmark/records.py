"""What a benchmark has left in its folder: the plan, the records of its steps, and what they made.

Nothing is computed here, and nothing that is missing or out of date is taken: it is named in `missing`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kappaseg_core.errors import UserError
from pipelines.benchmark.intervals import ImageCounts
from pipelines.results_doc import read_results

#: κ and seed of a step as the plan has them
Value = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A step of the plan. kappa: labels kept at test; None = as the scheme has it.   record: None until it is done."""

    id: str
    kind: str
    folder: str
    needs: tuple[str, ...]
    fingerprint: str
    scheme: str | None = None
    ranker: str | None = None
    seed: int | None = None
    kappa: int | None = None
    record: Value | None = None


@dataclass(frozen=True)
class Measured:
    """A finished measurement. run: the run directory that it is of, relative to the benchmark's folder."""

    step: Step
    run: str
    folder: Path
    values: Value

    @property
    def scheme(self) -> str:
        assert self.step.scheme is not None
        return self.step.scheme

    @property
    def seed(self) -> int:
        assert self.step.seed is not None
        return self.step.seed

    @cached_property
    def counts(self) -> ImageCounts:
        return ImageCounts.read(self.folder / "images.npz")


@dataclass(frozen=True)
class Records:
    """Everything of one benchmark. schemes: name → what the plan says of it, in the plan's order."""

    out: Path
    plan: Value
    steps: dict[str, Step]
    missing: list[str] = field(default_factory=list)

    @property
    def schemes(self) -> dict[str, Value]:
        return dict(self.plan["schemes"])

    @property
    def baseline(self) -> str:
        return str(self.plan["baseline"])

    @cached_property
    def measured(self) -> tuple[Measured, ...]:
        """All finished measurements, in the plan's order."""
        return tuple(self._measured())

    def of(self, scheme: str) -> list[Measured]:
        """A scheme's measurements at its own κ, by seed."""
        return sorted(self.at_kappa(scheme, None), key=lambda found: found.seed)

    def at_kappa(self, scheme: str, kappa: int | None) -> list[Measured]:
        return [found for found in self.measured if found.scheme == scheme and found.step.kappa == kappa]

    def before(self, step: Step) -> dict[str, Step]:
        """Every step that this one stands on, by id, nearest first."""
        found: dict[str, Step] = {}
        waiting = list(step.needs)
        while waiting:
            needed = self.steps[waiting.pop(0)]
            if needed.id not in found:
                found[needed.id] = needed
                waiting += needed.needs
        return found

    def summary(self, step: Step) -> Value | None:
        """What a finished training run says of itself; None (and named as missing) where it does not."""
        path = self.out / step.folder / "summary.json"
        if step.record is not None and path.exists():
            return read_results(path)
        self.lacks(f"{step.id}: no finished run in {step.folder}")
        return None

    def cost(self) -> Value:
        """cost.json; empty (and named as missing) where it is not there."""
        for step in self.steps.values():
            path = self.out / step.folder / "cost.json"
            if step.kind == "cost" and step.record is not None and path.exists():
                return read_results(path)
        self.lacks("cost: parameters, MACs, speed and latency are not measured")
        return {}

    def commit(self, step: Step) -> str:
        """The source tree that did a step; that of the plan where its record does not say."""
        return str((step.record or {}).get("commit") or self.plan["commit"])

    def lacks(self, what: str) -> None:
        """Name something that is not there, once."""
        if what not in self.missing:
            self.missing.append(what)

    def _measured(self) -> Iterator[Measured]:
        for step in self.steps.values():
            if step.kind != "measure" or step.record is None:
                continue
            run = next((s.folder for s in self.before(step).values() if s.kind == "train"), None)
            folder = self.out / step.folder
            if run is None or not (folder / "measurement.json").exists() or not (folder / "images.npz").exists():
                self.lacks(f"{step.id}: no measurement in {step.folder}")
                continue
            yield Measured(step, run, folder, read_results(folder / "measurement.json"))


def read_records(out: Path) -> Records:
    """The benchmark in `out`. Raises UserError where there is none."""
    if not (out / "plan.json").exists():
        raise UserError(f"{out} holds no plan.json, so it is no benchmark; run kappaseg benchmark CONFIG --out {out}")
    plan = read_results(out / "plan.json")
    missing: list[str] = []
    steps = {name: step_of(out, name, values, missing) for name, values in plan["steps"].items()}
    return Records(out, plan, steps, missing)


def step_of(out: Path, name: str, values: Mapping[str, Any], missing: list[str]) -> Step:
    """A step with its record, unless that is missing or of other settings."""
    path, record = out / "steps" / f"{name}.json", None
    try:
        record = dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        missing.append(f"{name}: not done")
    except (OSError, ValueError) as error:
        missing.append(f"{name}: its record cannot be read ({error})")
    if record is not None and record.get("fingerprint") != values["fingerprint"]:
        missing.append(f"{name}: made with other settings than those of plan.json")
        record = None
    return Step(
        id=name, kind=values["kind"], folder=values["folder"], needs=tuple(values["needs"]),
        fingerprint=values["fingerprint"], scheme=values.get("scheme"), ranker=values.get("ranker"),
        seed=values.get("seed"), kappa=values.get("kappa"), record=record,
    )  # fmt: skip


def finite(value: Any) -> Any:
    """Nested values as JSON holds them: None for NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
