"""`kappaseg plan DATA`: what a data set is like, and settings for it that fit into this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kappaseg_core.config import DataConfig, load_config, read_settings
from kappaseg_core.errors import UserError
from kappaseg_core.files import writing
from kappaseg_core.progress import say
from pipelines.plan.choose import KINDS, Choice, choose
from pipelines.plan.estimate import hours_of, memory_of
from pipelines.plan.files import Planned, said_of, write_plan
from pipelines.plan.fingerprint import Fingerprint, fingerprint_of, read_fingerprint
from pipelines.plan.machine import Machine, machine
from pipelines.plan.start import Part, start
from pipelines.plan.step import side_of
from pipelines.plan.timing import step_seconds
from pipelines.published.recipe_files import duration
from pipelines.tables import show_table
from stage1_multilabel.config import Stage1Config
from stage2_segmentation.config import Stage2Config

FILES = ("stage1.yaml", "rank.yaml", "stage2.yaml", "joint.yaml")
#: wishes that choose settings
CHOOSING = ("backbone", "weights", "crop", "overwrite")
PARTS: tuple[Part, ...] = ("stage1", "stage2", "joint")


@dataclass(frozen=True)
class Wishes:
    """What the command line says.   memory: GiB; None = what is free.   images: masks to read; None = all."""

    out: Path
    device: str = "auto"
    memory: float | None = None
    backbone: str | None = None
    weights: str | None = None
    crop: int | None = None
    images: int | None = None
    measure: bool = False
    overwrite: bool = False


def plan(data: DataConfig, wishes: Wishes) -> None:
    """Read the masks, choose, and write the files. Raises UserError."""
    check(wishes)
    found = fingerprint_of(data, wishes.out, wishes.images)
    with writing(wishes.out):
        wishes.out.mkdir(parents=True, exist_ok=True)
    found.write(wishes.out)  # at once: masks are read for long, and what follows may be refused
    found.show(f"{data.kind} {data.root}")
    here = machine(wishes.device, wishes.memory)
    begin = start(found, gpu=here.gpu, backbone=wishes.backbone, weights=wishes.weights)
    parts = []
    for part in PARTS:
        say(f"planning {part}")
        choice, memory = choose(part, begin, found, here, wishes.crop)
        parts.append(timed(Planned(choice, memory, 0.0, measured=wishes.measure), found, here))
    write_plan(wishes.out, parts, begin, data, found, here)
    show(parts, found, here)
    print(f"\nwritten to {wishes.out}: fingerprint.json, {', '.join(FILES)}")
    print(f"next: kappaseg run-stage1 {wishes.out / 'stage1.yaml'}, or run-joint {wishes.out / 'joint.yaml'}")


def check(wishes: Wishes) -> None:
    check_numbers(wishes)
    if wishes.out.exists() and not wishes.out.is_dir():
        raise UserError(f"--out {wishes.out} is no folder; name another")
    there = [file for file in FILES if (wishes.out / file).exists()]
    if there and not wishes.overwrite:
        raise UserError(f"{wishes.out / there[0]} exists; choose another --out, or --overwrite what was planned there")
    if wishes.weights and not Path(wishes.weights).is_file():
        raise UserError(f"--weights {wishes.weights} does not exist; give a file that kappaseg import-weights wrote")


def check_numbers(wishes: Wishes) -> None:
    for name, least in (("images", 1), ("crop", 32)):
        value = getattr(wishes, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}, wanted at least {least}")


def timed(planned: Planned, found: Fingerprint, here: Machine) -> Planned:
    config = planned.choice.config()
    seconds = step_seconds(config, found.classes, here) if planned.measured else None
    return Planned(planned.choice, planned.memory, hours_of(config, found, here, seconds), planned.measured)


def check_file(path: Path, wishes: Wishes) -> None:
    """Print the estimate of a configuration. Raises UserError where it is none, or its data cannot be opened.

    A fingerprint beside it is taken where it is that of its data; else the masks are read, as many as before.
    """
    check_numbers(wishes)
    if wrong := next((name for name in CHOOSING if getattr(wishes, name)), None):
        raise UserError(f"--{wrong} chooses settings, which plan --check takes from {path}; edit it instead")
    part = part_of(path)
    config = load_config(KINDS[part], path)
    choice = Choice(part, read_settings(path))
    here = machine(wishes.device if wishes.device != "auto" else config.loop.device, wishes.memory)
    known = read_fingerprint(path.parent)
    sample = known.scanned if known and known.scanned < known.train else None
    found = fingerprint_of(config.data, path.parent, wishes.images or sample)
    planned = timed(Planned(choice, memory_of(config, found, here), 0.0, measured=wishes.measure), found, here)
    show([planned], found, here)
    print(said_of(planned, here))
    if planned.memory.total > here.memory_mib:
        raise UserError(
            f"{path} takes {planned.memory.total / 1024:.1f} GiB of {here.memory_mib / 1024:.1f}; raise "
            "loop.accumulate, set backbone.checkpointing true or lower the size of its images"
        )


def part_of(path: Path) -> Part:
    """Which of the commands a file is for."""
    values = read_settings(path)
    if "head" in values or "image_size" in (values.get("augment") or {}):
        return "stage1"
    return "joint" if (values.get("source") or {}).get("train") == "joint" else "stage2"


def show(parts: list[Planned], found: Fingerprint, here: Machine) -> None:
    columns = ["", "backbone", "pixels", "κ", "batch", "precision", "blocks", "GiB", "time"]
    where = f"{here.memory_mib / 1024:.1f} GiB on the {'GPU' if here.gpu else 'CPU'}"
    show_table(f"estimated, for {where}", columns, [row(planned, found.classes) for planned in parts])


def row(planned: Planned, classes: int) -> list[str]:
    config = planned.choice.config()
    loop, again = config.loop, config.backbone.checkpointing
    return [
        planned.choice.part, config.backbone.name, str(side_of(config)),
        "–" if isinstance(config, Stage1Config) else kept(config, classes),
        f"{loop.accumulate} x {loop.batch_size // loop.accumulate}", loop.precision,
        "computed again" if again else "kept", f"{planned.memory.total / 1024:.1f}", duration(planned.hours),
    ]  # fmt: skip


def kept(config: Stage2Config, classes: int) -> str:
    """κ of a training, in words."""
    return "all" if config.source.train == "complete" else str(config.source.kept(classes))
