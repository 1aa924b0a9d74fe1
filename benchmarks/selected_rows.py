"""A step of training where the optimiser changes all rows of the class table, and where the selected ones alone.

    OMP_NUM_THREADS=1 python benchmarks/selected_rows.py

Segmenter with random weights on images of 512 x 512 (two for ViT-T, one for ViT-B), κ = 100 labels of each, fp32; the
step of the training loop: gradients let go, forward, backward, clipping, optimiser (optim.selected_rows). The two ways
of a case run in processes of their own, in turns (A B B A); times are processor time over all threads. Memory is the
largest resident memory of a step beyond what the process holds before it builds the network, so with weights,
gradients and state. The result is benchmarks/results/selected_rows.json; --only runs some cases and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from kappaseg_core.files import write_text
from kappaseg_core.optim import build_optimizer, clip_gradients
from kappaseg_core.ranking import top_kappa
from kappaseg_core.structures import Batch
from pipelines.bench.clocks import CpuClock, Taken, resident_mib
from pipelines.bench.machine import machine
from pipelines.bench.steps import Given, network, regions
from pipelines.bench.variants import BACKBONES, Variant, plain_config
from stage2_segmentation.task import SegmentTask

RESULTS = Path(__file__).parent / "results" / "selected_rows.json"
KAPPA, SIZE = 100, 512
#: backbone → images of a step
IMAGES = {"ViT-T": 2, "ViT-B": 1}
Kind = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class Case:
    backbone: str
    classes: int
    kind: Kind

    @property
    def title(self) -> str:
        return f"{self.backbone}, {self.kind}, K = {self.classes:,}"


CASES = [
    Case(backbone, classes, kind) for backbone in IMAGES for kind in ("adamw", "sgd") for classes in (150, 20_000)
]  # fmt: skip
WAYS = {"all": False, "selected": True}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="cases with this in their name")
    given = parser.parse_args(arguments)
    found = json.loads(RESULTS.read_text("utf-8"))["cases"] if RESULTS.exists() else {}
    for case in CASES:
        if given.only in case.title:
            found[case.title] = {
                **asdict(case),
                "rounds": given.rounds,
                "machine": machine(),
                **in_turns(case, given.rounds),
            }
            ordered = {each.title: found[each.title] for each in CASES if each.title in found}
            write_text(RESULTS, json.dumps({"kappa": KAPPA, "cases": ordered}, indent=1, ensure_ascii=False) + "\n")
            print(case.title, {way: figures(found[case.title][way]) for way in WAYS}, flush=True)


def figures(taken: dict[str, Any]) -> str:
    step, optimiser = (1e3 * statistics.median(taken[name]) for name in ("step_seconds", "optimiser_seconds"))
    return f"{step:.0f} ms, optimiser {optimiser:.1f} ms, {taken['memory_mib']} MiB"


def in_turns(case: Case, rounds: int) -> dict[str, Any]:
    """What a step takes in both ways; a first round warms up and does not count."""
    context = multiprocessing.get_context("spawn")
    pipes, taken = {}, {way: list[Taken]() for way in WAYS}
    for way, selected in WAYS.items():
        pipes[way], theirs = context.Pipe()
        context.Process(target=work, args=(theirs, case, selected), daemon=True).start()
        theirs.close()  # so that a process that fails is noticed
    for turn in range(rounds + 1):
        for way in list(pipes)[:: 1 if turn % 2 else -1]:  # whoever comes second finds the caches of the other
            pipes[way].send(True)
            one = pipes[way].recv()
            if turn:
                taken[way].append(one)
    for pipe in pipes.values():
        pipe.send(False)
    return {way: record(all_of) for way, all_of in taken.items()}


def record(taken: Sequence[Taken]) -> dict[str, Any]:
    return {
        "step_seconds": [round(one.cpu, 5) for one in taken],
        "optimiser_seconds": [round(one.parts["optimiser"], 5) for one in taken],
        "memory_mib": round(statistics.median(one.memory for one in taken)),
    }


# In the process of one way


def work(pipe: Connection, case: Case, selected: bool) -> None:
    """Do a step whenever asked, and tell what it took."""
    torch.manual_seed(0)
    before, clock = resident_mib(), CpuClock()
    step = step_of(case, selected, clock.mark)
    while pipe.recv():
        clock.start()
        step()
        one = clock.stop()
        pipe.send(Taken(one.cpu, one.seconds, clock.held + one.memory - before, one.parts))


def step_of(case: Case, selected: bool, mark: Callable[[str], None]) -> Callable[[], None]:
    config = plain_config(
        BACKBONES[case.backbone.lower()], kind=case.kind, lr=1e-4, weight_decay=1e-2, selected_rows=selected
    )
    variant = Variant(case.title, config, case.classes, KAPPA, train=True, images=IMAGES[case.backbone], size=SIZE)
    model, images = network(variant), torch.randn(variant.images, 3, SIZE, SIZE)
    ranking = top_kappa(torch.rand(variant.images, case.classes), KAPPA)
    batch = Batch(tuple(map(str, range(len(images)))), image=images, mask=regions(images, ranking))
    task = SegmentTask(
        model, Given(ranking), case.classes, missed=config.source, labels=config.labels, loss_stride=config.loss.stride
    )
    groups = task.parameter_groups(config.optim)
    for group in groups:
        group["lr"] = config.optim.lr
    trained, optimizer = [p for group in groups for p in group["params"]], build_optimizer(groups, config.optim)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        task(batch)[0].backward()
        mark("network")
        clip_gradients(trained, config.optim)
        optimizer.step()
        mark("optimiser")

    return step


if __name__ == "__main__":
    main()
