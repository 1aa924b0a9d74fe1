"""Where a training runs: `--scale.NAME` flags of the training commands, apart from what is trained.

A run's record does not hold them, so a run may go on with other ones.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import Field, dataclass, field, fields
from typing import Any, get_type_hints

from kappaseg_core.config import LoopConfig
from kappaseg_core.errors import UserError


def described(default: Any, text: str) -> Any:
    """A field whose text the command's help shows."""
    return field(default=default, metadata={"text": text})


@dataclass(frozen=True)
class ScaleConfig:
    """Processes, GPUs and machines. Raises UserError for numbers that cannot be."""

    workers: int = described(1, "training processes; loop.batch_size is shared among them")
    gpus: int = described(0, "GPUs in all, one worker each; without it, several workers compute on the CPU")
    cpus_per_worker: float = described(1.0, "CPU cores that a worker reserves, its loader processes included")
    address: str = described("", "Ray cluster, HOST:PORT of its head or auto; without it, processes on this machine")
    restarts: int = described(3, "how often all workers start again, from the last saved step, after one has died")

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("gpus", 0), ("restarts", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--scale.{name} = {getattr(self, name)}, wanted at least {least}")
        if self.cpus_per_worker <= 0:
            raise UserError(f"--scale.cpus_per_worker = {self.cpus_per_worker:g}, wanted more than 0")
        if self.gpus and self.workers not in (1, self.gpus):
            raise UserError(
                f"--scale.workers = {self.workers} with --scale.gpus = {self.gpus}; each GPU has one worker, "
                "give --scale.gpus alone"
            )

    @property
    def world(self) -> int:
        """Processes that train."""
        return self.gpus or self.workers

    @property
    def in_process(self) -> bool:
        """Whether the program itself trains, without Ray."""
        return self.world == 1 and not self.gpus and not self.address

    def refuse_unfit(self, loop: LoopConfig) -> None:
        """Raise UserError, before anything starts, for a loop that these workers cannot run."""
        if loop.batch_size % (self.world * loop.accumulate):
            raise UserError(
                f"loop.batch_size = {loop.batch_size} is no multiple of {self.world} workers × "
                f"{loop.accumulate} micro-batches"
            )
        if self.gpus and loop.device not in ("auto", "cuda"):
            raise UserError(f"loop.device = {loop.device} with --scale.gpus = {self.gpus}; use loop.device auto")
        if not self.gpus and loop.device.startswith("cuda"):
            raise UserError(f"loop.device = {loop.device} on CPU workers; give --scale.gpus N, or loop.device auto")


def add_flags(parser: ArgumentParser) -> None:
    """--scale.NAME for each field of ScaleConfig."""
    group = parser.add_argument_group("on several processes, GPUs or machines (needs the ray extra)")
    kinds = get_type_hints(ScaleConfig)
    for each in fields(ScaleConfig):
        text = f"{each.metadata['text']} (default: {'none' if each.default == '' else f'{each.default:g}'})"
        name = "WHERE" if each.name == "address" else "N"
        group.add_argument(flag(each), type=kinds[each.name], default=each.default, metavar=name, help=text)


def scale_of(arguments: Namespace) -> ScaleConfig:
    """What the flags say."""
    return ScaleConfig(**{each.name: getattr(arguments, flag(each)[2:]) for each in fields(ScaleConfig)})


def flag(each: Field[Any]) -> str:
    return f"--scale.{each.name}"
