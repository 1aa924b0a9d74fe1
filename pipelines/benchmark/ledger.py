"""What of a benchmark is done, and whether that still holds.

    steps/ID.json    of a finished step: what it was made from, what it made, what that took
    steps/ID.begun   of a step in progress, or stopped: what it is made from, its process, how often it was started
    steps/ID.log     what its processes printed

A step is done while its record has the plan's fingerprint, the present digests of what it stands on, and its files are
there: as with make, a product that is deleted is made again, and so is all that stands on it, and nothing else. That
holds where the new product equals the old one, too: each making has a digest of its own, except of steps between others
(features), of which only the content counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.files import file_sha256, write_text
from pipelines.benchmark import child
from pipelines.benchmark.inputs import commit
from pipelines.benchmark.plan import Plan, Step

#: kind → files that a step is to leave in its folder
PRODUCTS = {
    "stage1": ("run.yaml", "weights.safetensors", "summary.json"),
    "train": ("run.yaml", "weights.safetensors", "summary.json"),
    "rank": ("manifest.json", "**/*.parquet"),
    "measure": ("measurement.json", "images.npz"),
    "cost": ("cost.json",),
}


@dataclass(frozen=True)
class Record:
    """A finished step. inputs: id → digest of what it stands on.   digest: sha256 over its files and their making.

    seconds, cpu_seconds, peak_memory_mib: of its last start.   attempts: how often it was started.
    files: what it made, below OUT.   commit: of the source tree that did it; empty in records of before it was noted.
    """

    id: str
    kind: str
    fingerprint: str
    inputs: dict[str, str]
    digest: str
    seconds: float
    cpu_seconds: float
    peak_memory_mib: int
    attempts: int
    finished: str
    host: str
    files: tuple[str, ...]
    commit: str = ""


@dataclass(frozen=True)
class Begun:
    """A step in progress."""

    fingerprint: str
    inputs: dict[str, str]
    attempts: int = 0
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=platform.node)


def record_file(out: Path, name: str) -> Path:
    return out / "steps" / f"{name}.json"


def begun_file(out: Path, name: str) -> Path:
    return out / "steps" / f"{name}.begun"


def log_file(out: Path, name: str) -> Path:
    return child.log_of(str(out), name)


def log_bytes(out: Path, name: str) -> int:
    """How much a step's processes have printed so far; 0 before the first."""
    try:
        return log_file(out, name).stat().st_size
    except FileNotFoundError:
        return 0


def read_record(out: Path, name: str) -> Record | None:
    """The record of a finished step; None where there is none that can be read."""
    values = read_values(record_file(out, name))
    try:
        return Record(**{**values, "files": tuple(values["files"])}) if values else None
    except (TypeError, KeyError):
        return None


def read_begun(out: Path, name: str) -> Begun | None:
    values = read_values(begun_file(out, name))
    try:
        return Begun(**values) if values else None
    except TypeError:
        return None


def read_values(file: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def digests(out: Path, step: Step) -> dict[str, str]:
    """The present digests of what a step stands on."""
    records = {need: read_record(out, need) for need in step.needs}
    return {need: record.digest if record else "" for need, record in records.items()}


def is_done(out: Path, step: Step) -> bool:
    """Whether nothing is to do. The product of a step between others may be gone (see `wanted_again`)."""
    record = read_record(out, step.id)
    if record is None or record.fingerprint != step.fingerprint or record.inputs != digests(out, step):
        return False
    return step.is_between or is_there(out, record)


def is_there(out: Path, record: Record) -> bool:
    return bool(record.files) and all((out / file).exists() for file in record.files)


def wanted_again(plan: Plan) -> set[str]:
    """Steps between others whose product is gone, while something that is to be done needs it."""
    stale: set[str] = set()
    for step in plan.steps.values():
        if not is_done(plan.out, step) or stale.intersection(step.needs):
            stale.add(step.id)
    gone = (s for s in plan.steps.values() if s.is_between and s.id not in stale)
    return {
        step.id
        for step in gone
        if not ((record := read_record(plan.out, step.id)) and is_there(plan.out, record))
        and any(above.id in stale for above in plan.above(step))
    }


def begin(out: Path, step: Step) -> Begun:
    """Make room for a step and mark it as begun. What an earlier start of the same step left is kept, to go on from."""
    record, before, inputs = read_record(out, step.id), read_begun(out, step.id), digests(out, step)
    same = before is not None and (before.fingerprint, before.inputs) == (step.fingerprint, inputs)
    if record is not None or (before is not None and not same):
        remove_product(out, step, record)
    record_file(out, step.id).unlink(missing_ok=True)
    begun = Begun(step.fingerprint, inputs, attempts=1 + (before.attempts if before and same else 0))
    write_text(begun_file(out, step.id), json.dumps(asdict(begun)) + "\n")
    return begun


def remove_product(out: Path, step: Step, record: Record | None) -> None:
    """Delete what this benchmark made for a step: its folder, or in a shared folder what its record names."""
    if step.kind == "features":
        folders = {(out / file).parent for file in record.files} if record else set()
    else:
        folders = {out / step.folder}
        if step.kind == "rank" and step.settings.get("folds"):
            folders.add(Path(step.settings["out"]))
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def finish(
    out: Path, step: Step, begun: Begun, spent: Mapping[str, Any], files: tuple[str, ...] | None = None
) -> Record:
    """Record a step as done.   files: what it made, below OUT; None = what its kind is to leave in its folder.

    Raises UserError where that is not there.
    """
    made = product(out, step) if files is None else files
    record = Record(
        id=step.id, kind=step.kind, fingerprint=step.fingerprint, inputs=begun.inputs,
        digest=digest(out, made, made_at=0 if step.is_between else time.time_ns()),
        attempts=begun.attempts, finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"), host=begun.host, files=made,
        commit=commit(), **spent,
    )  # fmt: skip
    write_text(record_file(out, step.id), json.dumps(asdict(record), indent=1) + "\n")
    begun_file(out, step.id).unlink(missing_ok=True)
    return record


def product(out: Path, step: Step) -> tuple[str, ...]:
    """The files that a step was to make, below OUT. Raises UserError for a missing one."""
    found: list[str] = []
    for pattern in PRODUCTS[step.kind]:
        files = sorted(str(file.relative_to(out)) for file in (out / step.folder).glob(pattern))
        if not files:
            raise UserError(f"{step.id} left no {pattern} in {out / step.folder}; delete that folder and start again")
        found += files
    return tuple(found)


def digest(out: Path, files: tuple[str, ...], *, made_at: int) -> str:
    """sha256 (hex) over names, contents and the time of making."""
    lines = (f"{name}\0{file_sha256(out / name)}\n" for name in sorted(files))
    return hashlib.sha256(f"{''.join(lines)}{made_at}".encode()).hexdigest()
