"""Time and memory of Segmenter as the vocabulary grows: the published way, and what each step away from it brings.

    OMP_NUM_THREADS=2 python benchmarks/cost_in_k.py

One process per variant, asked in turns (A B C A B C), medians; images of 512 x 512, random weights and labels, fp32
where no precision is named. Seconds are processor time over all threads. Memory is the largest resident memory of a
step beyond what the process holds before it: weights, and in training their gradients and momentum. A training step is
one of SGD on two images, of ViT-B on one, so that all processes fit into 23 GiB; inference is of one image, from pixels
to label ids. benchmarks/published_way.py says what is published. The result is benchmarks/results/cost_in_k.json;
--only runs some of the comparisons and keeps the others.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from experiments import machine
from published_way import attention_in_steps, loss_of_all_pixels, map_by_scatter, map_of_all_labels
from torch import Tensor

from kappaseg_core.config import BackboneConfig
from kappaseg_core.ranking import Ranking, complete_ranking, to_rank_space, top_kappa
from stage2_segmentation.config import HostConfig, InferenceConfig, SourceConfig, Stage2Config
from stage2_segmentation.inference import segmented
from stage2_segmentation.losses import segmentation_loss
from stage2_segmentation.model import SegmentationModel, build_segmentation

RESULTS = Path(__file__).parent / "results" / "cost_in_k.json"
SIDE = 512


@dataclass(frozen=True)
class Variant:
    """What one process computes. kappa: None = all labels."""

    name: str
    backbone: str
    classes: int
    kappa: int | None
    train: bool
    way: str = "ours"
    """ours; plain: fused attention, but upsampling and loss (or arg-max) as published; published: all as published;
    backbone: nothing behind it"""
    precision: str = "fp32"
    images: int = 1


TINY, BASE = "vit_tiny_patch16_384", "vit_base_patch16_384"


def comparison(backbone: str, classes: int, kappa: int, *, train: bool) -> tuple[Variant, ...]:
    """The ways to compute one thing, the published one first."""
    images = 2 if train and backbone == TINY else 1
    first = Variant("published", backbone, classes, None, train, "published", images=images)
    ours = Variant("kept labels, ours", backbone, classes, kappa, train, images=images)
    all_ours = Variant("all labels, ours", backbone, classes, None, train, images=images)
    scatter = () if train else (Variant("kept labels, published", backbone, classes, kappa, train, "published"),)
    return (
        first, *scatter, all_ours, replace(ours, name="kept labels, plain", way="plain"), ours,
        replace(ours, name="kept labels, ours, bf16", precision="bf16"),
        replace(ours, name="backbone alone", way="backbone"),
    )  # fmt: skip


def flat(backbone: str, *, train: bool) -> tuple[Variant, ...]:
    images = 2 if train else 1
    return tuple(Variant(f"K = {k:,}", backbone, k, 100, train, images=images) for k in (150, 1284, 20_000))


COMPARISONS = {
    "training, ViT-T, K = 847, κ = 100": comparison(TINY, 847, 100, train=True),
    "inference, ViT-T, K = 847, κ = 100": comparison(TINY, 847, 100, train=False),
    "training, ViT-B, K = 1,284, κ = 100": comparison(BASE, 1284, 100, train=True),
    "inference, ViT-B, K = 1,284, κ = 100": comparison(BASE, 1284, 100, train=False),
    "training, ViT-T, κ = 100, by K": flat(TINY, train=True),
    "inference, ViT-T, κ = 100, by K": flat(TINY, train=False),
    "inference, ViT-B, κ = 100, by K": flat(BASE, train=False),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="comparisons with this in their name")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        return work(Variant(**json.loads(given.worker)))
    known = json.loads(RESULTS.read_text("utf-8"))["comparisons"] if RESULTS.exists() else {}
    for name, variants in COMPARISONS.items():
        if given.only in name:
            print(name, flush=True)
            known[name] = {
                "rounds": given.rounds, "machine": machine(), "threads": torch.get_num_threads(),
                "variants": measured(variants, given.rounds),
            }  # fmt: skip
            ordered = {key: known[key] for key in COMPARISONS if key in known}
            RESULTS.write_text(json.dumps({"comparisons": ordered}, indent=1) + "\n", "utf-8")


def measured(variants: Sequence[Variant], rounds: int) -> list[dict[str, Any]]:
    """A record for each variant; each is asked once to warm up, then in turns."""
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(variant)) for variant in variants]
        for process in workers:
            ask(process)
        answers = [[ask(process) for process in workers] for _ in range(rounds)]
    records = []
    for variant, taken in zip(variants, zip(*answers, strict=True), strict=True):
        record = asdict(variant) | {
            "cpu_seconds": [answer["cpu"] for answer in taken],
            "seconds": [answer["wall"] for answer in taken],
            "memory_mib": round(statistics.median(answer["memory"] for answer in taken)),
        }
        print(f"  {variant.name}: {statistics.median(record['cpu_seconds'])} s, {record['memory_mib']} MiB", flush=True)
        records.append(record)
    return records


def worker(variant: Variant) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--worker", json.dumps(asdict(variant))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    """One step. Raises RuntimeError where the process ended, for example for want of memory."""
    assert process.stdin and process.stdout
    print("step", file=process.stdin, flush=True)
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with {process.wait()}")
    answer: dict[str, float] = json.loads(line)
    return answer


# In a process of its own


def work(variant: Variant, asked: IO[str] = sys.stdin) -> None:
    """Do a step for every line that is read, and tell what it took."""
    torch.manual_seed(0)
    step = built(variant)
    for _ in asked:
        ctypes.CDLL(None).malloc_trim(0)
        before = resident_mib()
        Path("/proc/self/clear_refs").write_text("5")  # the largest resident memory is counted anew
        cpu, wall = time.process_time(), time.perf_counter()
        step()
        taken = {"cpu": round(time.process_time() - cpu, 4), "wall": round(time.perf_counter() - wall, 4)}
        print(json.dumps(taken | {"memory": peak_mib() - before}), flush=True)


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10


def built(variant: Variant) -> Callable[[], object]:
    model = network(variant)
    pictures = torch.randn(variant.images, 3, SIDE, SIDE)
    ranking = complete_ranking(variant.images, variant.classes)
    if variant.kappa:
        ranking = top_kappa(torch.rand(variant.images, variant.classes), variant.kappa)
    compute = (
        training(variant, model, pictures, ranking) if variant.train else inference(variant, model, pictures, ranking)
    )

    def step() -> None:
        with ExitStack() as stack:
            if variant.way == "published":
                stack.enter_context(attention_in_steps())
            stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=variant.precision == "bf16"))
            compute()

    return step


def network(variant: Variant) -> SegmentationModel:
    """Our attention has no dropout on its weights, so that fused kernels of the CPU can be used."""
    dropout = None if variant.way == "published" else 0.0
    config = Stage2Config(
        backbone=BackboneConfig(name=variant.backbone, frozen=False),
        host=HostConfig(options={"attention_dropout": dropout}),
        source=SourceConfig(train="cache" if variant.kappa else "complete", kappa=variant.kappa),
    )
    return build_segmentation(config, variant.classes).train(variant.train)


def training(variant: Variant, model: SegmentationModel, images: Tensor, ranking: Ranking) -> Callable[[], object]:
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    cells = torch.randint(ranking.kappa, (len(images), 1, 8, 8))  # a few labels, in regions
    ranks = torch.nn.functional.interpolate(cells.float(), (SIDE, SIDE)).long()[:, 0]
    mask = ranking.labels.gather(1, ranks.flatten(1)).view_as(ranks)

    def step() -> None:
        optimiser.zero_grad(set_to_none=False)
        if variant.way == "backbone":
            loss = model.backbone(images).float().square().mean()
        else:
            logits = model(images, ranking).rank_logits
            if variant.way == "ours":
                loss, _ = segmentation_loss(logits, mask, ranking, variant.classes, cell=model.cell)
            else:
                loss = loss_of_all_pixels(logits, to_rank_space(mask, ranking, variant.classes))
        loss.backward()
        optimiser.step()

    return step


def inference(variant: Variant, model: SegmentationModel, images: Tensor, ranking: Ranking) -> Callable[[], object]:
    size = (SIDE, SIDE)

    @torch.inference_mode()
    def step() -> object:
        if variant.way == "backbone":
            return model.backbone(images)
        if variant.way == "ours":
            return segmented(model, images[0], ranking, InferenceConfig(), size=size).label_map
        logits = model(images, ranking).rank_logits.float()
        if variant.way == "published" and variant.kappa:
            return map_by_scatter(logits, ranking.labels, variant.classes, size)
        ranks = map_of_all_labels(logits, size)
        return ranking.labels.gather(1, ranks.flatten(1)).view_as(ranks)

    return step


if __name__ == "__main__":
    main()
