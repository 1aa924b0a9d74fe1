"""Time and memory of Segmenter as the vocabulary grows: the published way, and what each step away from it brings.

    OMP_NUM_THREADS=2 python benchmarks/cost_in_k.py

One process per variant, asked in turns (A B C A B C), medians; images of 512 x 512, random weights and labels, fp32
where no precision is named. Seconds are processor time over all threads. Memory is the largest resident memory of a
step beyond what the process holds before it: weights, and in training their gradients and momentum. A training step is
one of SGD on two images, of ViT-B on one, so that all processes fit into 23 GiB; inference is of one image, from pixels
to label ids. pipelines/bench/published_way.py says what is published. The result is benchmarks/results/cost_in_k.json;
--only runs some of the comparisons and keeps the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.bench.comparisons import compare, known_in
from pipelines.bench.machine import free_gib
from pipelines.bench.variants import BACKBONES, Variant, known_ways, plain_config, variant, variants

RESULTS = Path(__file__).parent / "results" / "cost_in_k.json"
#: backbone → images of a training step
IMAGES = {"ViT-T": 2, "ViT-B": 1}


def comparison(backbone: str, classes: int, kappa: int, *, train: bool) -> Iterator[Variant]:
    """The ways to compute one thing, the published one first."""
    config = plain_config(BACKBONES[backbone.lower()], kind="sgd", lr=1e-3, weight_decay=0.0, clip=None)
    images = IMAGES[backbone] if train else 1
    for one in variants(config, known_ways(None, "cpu"), [classes], kappa, train=train, images=images):
        yield one
        if one.name == "kept labels, ours":
            yield replace(one, name=f"{one.name}, bf16", precision="bf16")


def flat(backbone: str, *, train: bool) -> Iterator[Variant]:
    config = plain_config(BACKBONES[backbone.lower()], kind="sgd", lr=1e-3, weight_decay=0.0, clip=None)
    for classes in (150, 1284, 20_000):
        ours = variant("ours", config, classes, 100, train=train, images=IMAGES[backbone] if train else 1)
        yield replace(ours, name=f"K = {classes:,}")


COMPARISONS = {
    "training, ViT-T, K = 847, κ = 100": comparison("ViT-T", 847, 100, train=True),
    "inference, ViT-T, K = 847, κ = 100": comparison("ViT-T", 847, 100, train=False),
    "training, ViT-B, K = 1,284, κ = 100": comparison("ViT-B", 1284, 100, train=True),
    "inference, ViT-B, K = 1,284, κ = 100": comparison("ViT-B", 1284, 100, train=False),
    "training, ViT-T, κ = 100, by K": flat("ViT-T", train=True),
    "inference, ViT-T, κ = 100, by K": flat("ViT-T", train=False),
    "inference, ViT-B, κ = 100, by K": flat("ViT-B", train=False),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="comparisons with this in their name")
    given = parser.parse_args(arguments)
    comparisons = {name: tuple(found) for name, found in COMPARISONS.items()}
    wanted = [name for name in comparisons if given.only in name]
    compare(
        comparisons, wanted, RESULTS, known_in(RESULTS), rounds=given.rounds, limit_gib=0.95 * free_gib("cpu")
    )  # fmt: skip


if __name__ == "__main__":
    main()
