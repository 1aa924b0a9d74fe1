"""`kappaseg bench data`: images per second of reading, decoding, augmenting and the whole loader, and who waits.

Steps are taken in processor time of one process, a loader worker's; loaders in time on the clock, with each number of
workers in turns (0 1 2 0 1 2 …), so that whatever else the machine does falls on all of them.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from kappaseg_core.config import LoopConfig, load_config, read_settings
from kappaseg_core.errors import UserError
from kappaseg_core.feeding import Examples, handovers, lost_workers_told
from kappaseg_core.files import write_text
from kappaseg_core.placement import Placement, place
from kappaseg_core.progress import Meter
from kappaseg_core.scenes import open_scenes, things_of
from pipelines.bench.data_steps import step_seconds
from pipelines.benchmark.inputs import machine
from pipelines.tables import show_table
from stage1_multilabel.config import Stage1Config
from stage2_segmentation.config import Stage2Config

TURNS = 3  # of every number of workers
STEPS, LOADERS, NETWORK = 0.25, 0.6, 0.15  # shares of the time
ANY_LOOK = (0.5, 0.5, 0.5)  # mean and deviation of the normalisation, which takes the same with any


def bench_data(path: str, settings: Sequence[tuple[str, str]], arguments: Namespace) -> None:
    """Measure, for about `--seconds`, and show a table or JSON. Raises UserError."""
    refuse_flags(arguments)
    config = configuration(path, settings)
    record = {"config": path, **measured(config, arguments)}
    if arguments.out:
        write_text(Path(arguments.out), json.dumps(record, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(record, indent=1))
    else:
        show(record)


def refuse_flags(arguments: Namespace) -> None:
    if arguments.out and Path(arguments.out).exists():
        raise UserError(f"--out {arguments.out} is there already; name another file, or remove it")
    if arguments.out and not Path(arguments.out).parent.is_dir():
        raise UserError(f"--out {arguments.out}: there is no folder {Path(arguments.out).parent}; make it first")
    if arguments.seconds <= 0:
        raise UserError(f"--seconds = {arguments.seconds:g}, wanted more than 0")
    if arguments.step_seconds is not None and arguments.step_seconds <= 0:
        raise UserError(f"--step-seconds = {arguments.step_seconds:g}, wanted more than 0")
    if arguments.step_seconds is not None and arguments.network:
        raise UserError("--step-seconds and --network both say what a step takes; give one")
    if any(workers < 0 for workers in arguments.workers or ()):
        raise UserError(f"--workers = {' '.join(map(str, arguments.workers))}, wanted numbers from 0")


def configuration(path: str, settings: Sequence[tuple[str, str]]) -> Stage1Config | Stage2Config:
    """Of whichever stage the file is. Raises the UserError of the one that more of its groups belong to."""
    mistakes: list[tuple[int, UserError]] = []
    kinds: tuple[type[Stage2Config], type[Stage1Config]] = (Stage2Config, Stage1Config)
    for kind in kinds:
        try:
            return load_config(kind, path, settings)
        except UserError as error:
            names = {field.name for field in fields(kind)}
            groups = {*read_settings(Path(path)), *(name.split(".")[0] for name, _ in settings)}
            mistakes.append((len(groups & names), error))
    raise max(mistakes, key=lambda mistake: mistake[0])[1]


def measured(config: Stage1Config | Stage2Config, arguments: Namespace) -> dict[str, Any]:
    """Everything that there is to say, as plain values."""
    here, seconds = place(config.loop, to_train=True), arguments.seconds
    scenes = open_scenes(config.data, config.data.train)
    examples, target = examples_of(config, scenes)
    batch, seed = config.loop.batch_size // config.loop.accumulate, config.loop.seed
    known = step_seconds(examples, scenes, target, batch=batch, seed=seed, limit=STEPS * seconds)
    workers = sorted({*(arguments.workers or usual_workers()), config.loop.loader_workers})
    with lost_workers_told():
        loaders = loader_rates(examples, target, config.loop, here, workers, LOADERS * seconds)
    needed = None
    if arguments.step_seconds is not None:
        needed = config.loop.batch_size / arguments.step_seconds
    elif arguments.network:
        from pipelines.bench.data_network import network_rate

        loaded = next(handovers(examples, target, replace(config.loop, loader_workers=0), here))
        things = things_of(scenes) if target == "objects" else None
        needed = network_rate(config, scenes.class_names, loaded, here, NETWORK * seconds, things=things)
    record = {
        "stage": 1 if isinstance(config, Stage1Config) else 2,
        "data": {"kind": config.data.kind, "root": config.data.root, "split": scenes.split, "images": len(scenes)},
        "machine": machine(), "device": str(here.device), "batch": batch,
        "loader_workers": config.loop.loader_workers, "loader_start": config.loop.loader_start,
        "stored_views": config.loop.cached_views if config.backbone.is_frozen else 0,
        **known, "loaders": loaders, "needed_images_per_second": needed,
    }  # fmt: skip
    return {**record, "advice": advice(record)}


def examples_of(config: Stage1Config | Stage2Config, scenes: Any) -> tuple[Examples, str]:
    """The training samples of a configuration, and the field that their targets fill."""
    if isinstance(config, Stage1Config):
        from stage1_multilabel.augment import TrainExamples as LabelExamples

        return LabelExamples(scenes, config.augment, ANY_LOOK, ANY_LOOK), "labels"
    from stage2_segmentation.augment import TrainExamples as MaskExamples
    from stage2_segmentation.hosts import learns_objects
    from stage2_segmentation.train import things_to_learn

    if not learns_objects(config.host.kind, config.host.options):
        return MaskExamples(scenes, config.augment, ANY_LOOK, ANY_LOOK), "mask"
    things_to_learn(scenes)
    return MaskExamples(scenes, config.augment, ANY_LOOK, ANY_LOOK, target="objects"), "objects"


def usual_workers() -> list[int]:
    """0, 1, 2, 4, … up to the cores."""
    cores = machine()["cores"]
    return [0, *(2**power for power in range(10) if 2**power <= cores)]


def loader_rates(
    examples: Examples, target: str, loop: LoopConfig, here: Placement, workers: Sequence[int], limit: float
) -> list[dict[str, Any]]:
    """Images per second with each number of workers, measured in turns."""
    turns: dict[int, list[float]] = {number: [] for number in workers}
    with Meter("measuring loaders", TURNS * len(workers), unit="turn") as meter:
        for turn in range(TURNS):
            for number in workers:
                wanted = replace(loop, loader_workers=number, steps=(turn + 1) * 10**6)
                stream = handovers(examples, target, wanted, here, first_step=turn * 10**6)
                with closing(stream):  # type: ignore[type-var]
                    turns[number].append(rate(stream, limit / TURNS / len(workers)))
                meter.advance()
    return [
        {"workers": number, "images_per_second": statistics.median(found), "turns": found}
        for number, found in turns.items()
    ]


def rate(stream: Any, limit: float) -> float:
    """Images per second, from the first batch on, when all workers are at work."""
    next(stream)
    started, images = time.perf_counter(), 0
    while not images or time.perf_counter() - started < limit:
        images += len(next(stream).image_id)
    return images / (time.perf_counter() - started)


def advice(record: dict[str, Any]) -> str:
    """One line: what the configured loader gives, and whether the device would wait for it."""
    rates = {each["workers"]: each["images_per_second"] for each in record["loaders"]}
    set_, needed, cores = record["loader_workers"], record["needed_images_per_second"], record["machine"]["cores"]
    best = max(rates, key=lambda workers: rates[workers])
    gives = f"loop.loader_workers = {set_} gives {plain(rates[set_])} images/s"
    if needed is None:
        most = 1000 * record["batch"] / rates[set_]
        other = f"; {best} would give {plain(rates[best])}" if rates[best] > 1.1 * rates[set_] else ""
        return f"{gives}, enough for a step of {record['batch']} images in {most:,.0f} ms or more{other}"
    if rates[set_] >= needed:
        return f"{gives}, the network takes {plain(needed)}: the device does not wait"
    waits = (
        f"{gives}, the network could take {plain(needed)}: the device waits {1 - rates[set_] / needed:.0%} of the time"
    )
    enough = [workers for workers, found in rates.items() if found >= needed]
    if enough:
        return f"{waits}; set loop.loader_workers {min(enough)}"
    each = 1 / sum(record["steps"].values())
    wanted = f"{waits}; an idle core gives {plain(each)}, so that it takes {math.ceil(needed / each)}"
    return f"{wanted}, and this machine has {cores}" + (", busy with other work" if needed / each <= cores else "")


def show(record: dict[str, Any]) -> None:
    data, whole = record["data"], sum(record["steps"].values())
    title = (
        f"stage {record['stage']}, {data['split']} of {data['kind']} {data['root']}: {record['images']} images measured"
    )
    rows = [
        [name, f"{1000 * seconds:.2f}", f"{100 * seconds / whole:.0f}", plain(1 / max(seconds, 1e-9))]
        for name, seconds in record["steps"].items()
    ]
    rows.append(["all, in one worker", f"{1000 * whole:.2f}", "100", plain(1 / whole)])
    show_table(title, ["step of an image", "ms", "% of the time", "images/s"], rows)
    loaders = [
        [str(each["workers"]), *map(plain, (each["images_per_second"], *extremes(each["turns"])))]
        for each in record["loaders"]
    ]
    show_table("", ["loader workers", "images/s", "lowest", "highest"], loaders)
    if record["stored_views"]:
        print(f"note: loop.cached_views = {record['stored_views']}: images are only read to fill the feature bank")
    print(record["advice"])


def plain(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def extremes(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)
