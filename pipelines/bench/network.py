"""`kappaseg bench network`: what a segmentation network costs on this machine against the number of labels.

DIR/network.json     every measured step, and what the network and the machine were
DIR/training.svg     time and memory against K; inference.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kappaseg_core.config import build, load_config, override, to_plain
from kappaseg_core.errors import UserError
from kappaseg_core.files import write_text
from pipelines.bench.arguments import VOCABULARIES
from pipelines.bench.variants import BACKBONES, Precision, Variant, known_ways, plain_config, variants
from stage2_segmentation.config import Stage2Config

RESULT = "network.json"
#: share of the free memory that is used where no limit is given
SHARE = 0.9
SMALLEST = 32


@dataclass(frozen=True)
class Plan:
    """What is to be measured. classes: all K.   modes: "training", "inference"."""

    config: Stage2Config
    classes: tuple[int, ...]
    kappa: int
    size: int
    batch: int | None
    modes: tuple[str, ...]
    precisions: tuple[Precision, ...]
    ways: tuple[str, ...]
    device: str

    def comparisons(self) -> dict[str, list[Variant]]:
        return {mode: list(self.variants(mode == "training")) for mode in self.modes}

    def variants(self, train: bool) -> Iterator[Variant]:
        for precision in self.precisions:
            yield from variants(
                self.config, self.ways, self.classes, self.kappa, train=train, precision=precision,
                images=self.batch or (2 if train else 1), size=self.size, device=self.device,
            )  # fmt: skip


def bench_network(arguments: argparse.Namespace, settings: Sequence[tuple[str, str]]) -> None:
    """Measure, write and print. Raises UserError for what cannot be measured here, before anything is."""
    plan = plan_of(arguments, settings)
    from pipelines.bench.comparisons import compare
    from pipelines.bench.figures import cost_figure
    from pipelines.bench.machine import check_device, free_gib
    from pipelines.bench.shown import show

    check_device(plan.device)
    limit = arguments.limit or SHARE * free_gib(plan.device)
    out = Path(arguments.out)
    if (out / RESULT).exists():
        raise UserError(f"{out / RESULT} is there already; name another --out, or remove it")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is no folder; name another")
    found = compare(
        plan.comparisons(), plan.modes, out / RESULT, {}, rounds=arguments.rounds, limit_gib=limit,
        floor=arguments.floor or plan.device != "cpu", config=to_plain(plan.config),
    )  # fmt: skip
    for mode, comparison in found.items():
        title = f"{mode}, {plan.config.backbone.name}, κ = {plan.kappa}, {plan.size} × {plan.size}"
        write_text(out / f"{mode}.svg", cost_figure(title, comparison["variants"]))
        show(title, comparison["variants"])
    print(f"written: {', '.join(str(out / name) for name in (RESULT, *(f'{mode}.svg' for mode in found)))}")


def plan_of(given: argparse.Namespace, settings: Sequence[tuple[str, str]]) -> Plan:
    """The plan that a command line asks for. Raises UserError."""
    for name in ("kappa", "size", "batch", "rounds", "limit"):
        value = getattr(given, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name} {value:g}, wanted a number above 0")
    if (given.size or SMALLEST) < SMALLEST:
        raise UserError(f"--size {given.size}, wanted at least {SMALLEST} pixels")
    config = network_config(given, settings)
    classes = tuple(sorted(set(given.classes or vocabulary(given, config))))
    kappa = given.kappa or config.source.kept(classes[0])
    if classes[0] < 1 or kappa > classes[0]:
        raise UserError(
            f"κ = {kappa} of K = {classes[0]} labels cannot be kept; give --kappa {max(1, classes[0] // 2)}"
        )
    modes = tuple(mode for mode, asked in (("training", given.train), ("inference", given.infer)) if asked)
    return Plan(
        config, classes, kappa, given.size or config.augment.crop, given.batch, modes or ("training", "inference"),
        tuple(dict.fromkeys(given.precision)),
        tuple(known_ways(given.variants, given.device, config.host.kind)), given.device,
    )  # fmt: skip


def network_config(given: argparse.Namespace, settings: Sequence[tuple[str, str]]) -> Stage2Config:
    """CONFIG, or plain Segmenter, with --backbone and the settings of the command line over it."""
    name = given.backbone and BACKBONES.get(given.backbone.lower(), given.backbone)
    more = [*([("backbone.name", name)] if name else []), *settings]
    if given.config:
        return load_config(Stage2Config, given.config, more)
    plain = plain_config(name or BACKBONES["vit-t"])
    values: dict[str, Any] = to_plain(plain)
    for dotted, text in more:
        override(values, dotted, text)
    return build(Stage2Config, values, source="command line")


def vocabulary(given: argparse.Namespace, config: Stage2Config) -> Sequence[int]:
    """K of the configuration's data, or the usual ones. Raises UserError where the data are not there."""
    if not given.config:
        return VOCABULARIES
    from kappaseg_core.scenes import open_scenes

    if not config.data.root and config.data.kind in ("folder", "packed"):
        raise UserError(f"{given.config} names no data to count the labels of; give --data.root DIR or --classes K")
    return [len(open_scenes(config.data, config.data.train).class_names)]
