"""The files of a plan: ordinary configurations, with the reason of each choice and the estimates as comments."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kappaseg_core.config import DataConfig
from kappaseg_core.files import write_text
from pipelines.plan.choose import MARGIN, Choice
from pipelines.plan.estimate import Memory
from pipelines.plan.fingerprint import Fingerprint
from pipelines.plan.machine import Machine
from pipelines.plan.start import Part, Start
from pipelines.published.estimate import REACHED
from pipelines.published.recipe import Settings
from pipelines.published.recipe_files import body, comment, duration

TITLES: dict[Part, str] = {
    "stage1": "Stage one: a classifier that ranks the labels of an image.",
    "stage2": "Stage two: segmentation among the labels that stage one ranked first (the independent scheme).",
    "joint": "One network that ranks the labels and segments among them (the joint scheme).",
}
VERBS: dict[Part, str] = {"stage1": "run-stage1", "stage2": "run-stage2", "joint": "run-joint"}
STORED = 256  # ranks in a label cache: κ can be chosen again when reading


@dataclass(frozen=True)
class Planned:
    """One part.   hours: by products of matrices, or by steps that were taken (measured)."""

    choice: Choice
    memory: Memory
    hours: float
    measured: bool


def write_plan(
    folder: Path, parts: list[Planned], start: Start, data: DataConfig, found: Fingerprint, machine: Machine
) -> None:
    """A YAML file of each part and of the ranking between the stages."""
    for planned in parts:
        part = planned.choice.part
        lines = [*header(folder, planned, start, found, machine), *body(settings_of(planned.choice, data, folder),
                 planned.choice.reasons)]  # fmt: skip
        write_text(folder / f"{part}.yaml", "\n".join(lines) + "\n")
    ranks = min(STORED, found.classes)
    rank = {
        **common(data, folder),
        "kappa": ranks,
        "precision": parts[0].choice.settings["loop"].get("precision", "fp32"),
    }
    first = comment("The label cache between the stages: the ranked labels of every image.")
    write_text(folder / "rank.yaml", "\n".join([*first, command(folder, "rank", "rank"), *body(rank)]) + "\n")


def header(folder: Path, planned: Planned, start: Start, found: Fingerprint, machine: Machine) -> Iterator[str]:
    part = planned.choice.part
    yield from comment(TITLES[part])
    yield command(folder, VERBS[part], part)
    yield from comment(f"Settings: {start.name}, changed for this data set and machine where a line says why.")
    read = f"{found.scanned:,} of {found.train:,}" if found.scanned < found.train else f"all {found.train:,}"
    yield from comment(f"Data: {found.classes:,} labels, {read} training masks read ({folder / 'fingerprint.json'}).")
    yield from comment(said_of(planned, machine))
    yield from comment(f"Change what you like; kappaseg plan --check {folder / part}.yaml estimates again.")


def said_of(planned: Planned, machine: Machine) -> str:
    """The estimates of a part, with what they stand on."""
    memory, loop = planned.memory, planned.choice.settings["loop"]
    precision = loop.get("precision", "fp32")
    how = (
        "by steps taken here" if planned.measured
        else f"at {100 * REACHED:.0f} % of the {machine.tflops[precision]:.2g} TFLOP/s that products of matrices "
        f"reached here in {precision}"
    )  # fmt: skip
    least = "" if machine.gpu or planned.measured else "at least "
    return (
        f"Estimated: {memory.total / 1024:.1f} GiB of {machine.memory_mib / 1024:.1f} GiB on the "
        f"{'GPU' if machine.gpu else 'CPU'} ({shares(memory)}; {100 * MARGIN:.0f} % are left free), and "
        f"{least}{duration(planned.hours)} without the loading of data ({how})."
    )


def shares(memory: Memory) -> str:
    """Where the memory goes."""
    parts = {
        "process": memory.process, "network and optimiser": memory.network,
        "evaluation" if memory.evaluation else "step": memory.step, "stored features": memory.stored,
    }  # fmt: skip
    return ", ".join(f"{name} {value / 1024:.2f}" for name, value in parts.items() if value)


def settings_of(choice: Choice, data: DataConfig, folder: Path) -> Settings:
    return {**common(data, folder), **choice.settings}


def common(data: DataConfig, folder: Path) -> Settings:
    """Where the scenes are, without settings at their defaults, and where runs go."""
    default = DataConfig()
    given: dict[str, Any] = {"kind": data.kind}
    given |= {name: value for name, value in vars(data).items() if value != getattr(default, name)}
    return {"data": given, "out": str(folder / "runs")}


def command(folder: Path, verb: str, name: str) -> str:
    return f"#   kappaseg {verb} {shlex.quote(str(folder / name))}.yaml"
