"""Which labels heads find as the vocabulary grows: a small training with known truth, equal steps for all heads.

    OMP_NUM_THREADS=1 python benchmarks/label_recall.py

Features are made, not computed from images: every label has a prototype at random, an image holds six labels, drawn
with Zipf's frequencies, and each of its 6 × 6 cells is the prototype of one of them with noise; some fill a few cells
only. All heads see the same images, as often; labels are easy to tell apart once known, and hard to find because most
are seen a few times only. The result is benchmarks/results/label_recall.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from experiments import machine
from torch import Tensor, nn

from kappaseg_core.config import LabelLossConfig
from kappaseg_core.label_heads import Shortlisted, build_head
from kappaseg_core.label_heads.shortlist import picked
from kappaseg_core.structures import Batch
from stage1_multilabel.classifier import Classifier
from stage1_multilabel.task import MultiLabelTask

RESULTS = Path(__file__).parent / "results" / "label_recall.json"
VOCABULARIES, SEEDS = (171, 1284, 10_000, 21_841), (0, 1, 2)
ONE_SEED_ABOVE = 1284  # the full query head takes minutes there
CHANNELS, SIDE, PRESENT = 32, 6, 6
STEPS, BATCH, TESTED = 500, 16, 1024
KAPPA, NEGATIVES, MOST_PICKED, GROUPS = 50, 512, 300, 100
RATE = 1e-2
QUERY: dict[str, Any] = {"ffn": 64, "heads": 4, "decoder_layers": 1, "dropout": 0.0}


class Scenes:
    """Features f32 [B, C, h, w] and targets f32 [B, K], drawn anew at every call."""

    def __init__(self, classes: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.prototypes = torch.randn(classes, CHANNELS, generator=self.generator)
        ranks = torch.randperm(classes, generator=self.generator) + 1
        self.weights = 1 / (ranks + 2.7)

    def draw(self, images: int) -> tuple[Tensor, Tensor]:
        labels = torch.multinomial(self.weights.expand(images, -1), PRESENT, generator=self.generator)
        shares = torch.rand(images, PRESENT, generator=self.generator) + 0.1
        cells = torch.multinomial(shares, SIDE * SIDE, replacement=True, generator=self.generator)
        cells[:, :PRESENT] = torch.arange(PRESENT)  # every label fills one cell at least
        shown = self.prototypes[labels.gather(1, cells)]
        noise = torch.randn(shown.shape, generator=self.generator)
        features = (shown + noise).mT.unflatten(2, (SIDE, SIDE))
        return features, torch.zeros(images, len(self.weights)).scatter(1, labels, 1.0)

    def batches(self) -> Iterator[Batch]:
        while True:
            features, targets = self.draw(BATCH)
            yield Batch(("",) * BATCH, features=(features,), labels=targets)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    given = parser.parse_args(arguments)
    runs: list[dict[str, Any]] = []
    for classes in given.classes:
        for seed in given.seeds[: 1 if classes > ONE_SEED_ABOVE else None]:
            runs += compared(classes, seed)
            write(runs, arguments or sys.argv[1:])


def write(runs: list[dict[str, Any]], arguments: Sequence[str]) -> None:
    results = {
        "command": " ".join(["python benchmarks/label_recall.py", *arguments]), "machine": machine(),
        "kappa": KAPPA, "steps": STEPS, "batch": BATCH, "tested": TESTED, "runs": runs,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def compared(classes: int, seed: int) -> Iterator[dict[str, Any]]:
    """Recall of every head on the same images, one record each."""
    picks = min(MOST_PICKED, classes // 2)
    heads: dict[str, tuple[nn.Module, float]] = {"frequency alone": (Frequency(classes, seed), 0.0)}

    def train(name: str, preset: str, negatives: int | None = None, **settings: Any) -> None:
        heads[name] = learnt(classes, seed, preset, settings, negatives)

    train("linear, mean", "gap")
    train("linear, soft maximum", "lse")
    train(f"group, {GROUPS} queries", "group", **QUERY, width=CHANNELS, project=False, groups=GROUPS)
    sampled = f"query head, {NEGATIVES} negatives"
    if classes > NEGATIVES + PRESENT * BATCH:  # or there would be no more labels than that
        train(sampled, "rankseg", NEGATIVES, **QUERY)
    train("query head", "rankseg", **QUERY)
    for name in ("query head", sampled):
        # what picks shares no weight with what it picks for: trained apart, both are what they are when trained along
        for first in ("linear, mean", "linear, soft maximum") if name in heads else ():
            (query, seconds), (linear, more) = heads[name], heads[first]
            listed = Shortlisted(linear, query, picks, num_classes=classes, weight=1.0)
            heads[f"{name}, short-list of {picks} by {first}"] = listed, seconds + more
    for name, (head, seconds) in heads.items():
        record = {"head": name, "classes": classes, "seed": seed, "seconds_per_step": seconds, "picks": picks}
        record |= measured(classes, seed, head)
        print(json.dumps(record), flush=True)
        yield record


class Frequency(nn.Module):
    """Ranks by how common labels are, and looks at no image."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        self.weights = Scenes(classes, seed).weights

    def forward(self, features: Tensor) -> Tensor:
        return self.weights.expand(len(features), -1)


def learnt(
    classes: int, seed: int, preset: str, settings: dict[str, Any], negatives: int | None
) -> tuple[nn.Module, float]:
    """A trained head, and the processor seconds of a step."""
    scenes = Scenes(classes, seed)
    torch.manual_seed(seed)
    head = build_head(preset, CHANNELS, classes, **settings)
    head.set_prior(PRESENT * scenes.weights / scenes.weights.sum())
    task = MultiLabelTask(
        Classifier(nn.Identity(), head, classes),  # type: ignore[arg-type]
        LabelLossConfig(gamma_neg=0, negatives=negatives),
    ).train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    spent = 0.0
    for _, batch in zip(range(STEPS), scenes.batches(), strict=False):
        started = time.process_time()
        optimizer.zero_grad()
        task(batch)[0].backward()
        optimizer.step()
        spent += time.process_time() - started
        schedule.step()
    return head.eval(), spent / STEPS


@torch.inference_mode()
def measured(classes: int, seed: int, head: nn.Module) -> dict[str, float]:
    """Shares of the labels present, over other images: among the best κ, and among the best that a short-list keeps.

    rare: of the labels that are less frequent than half of those that are drawn.
    """
    scenes = Scenes(classes, seed)
    scenes.generator.manual_seed(10_000 + seed)
    common = scenes.weights.sort(descending=True)
    half = common.values[int((common.values.cumsum(0) < scenes.weights.sum() / 2).sum())]
    rare = scenes.weights < half
    found = dict.fromkeys(("recall", "rare_recall", "picked_recall"), 0.0)
    total = rare_total = 0.0
    for _ in range(TESTED // BATCH):
        features, targets = scenes.draw(BATCH)
        scores = head(features)
        kept = torch.zeros_like(targets).scatter(1, picked(scores, KAPPA), 1.0) * targets
        listed = torch.zeros_like(targets).scatter(1, picked(scores, min(MOST_PICKED, classes // 2)), 1.0) * targets
        found["recall"] += float(kept.sum())
        found["rare_recall"] += float(kept[:, rare].sum())
        found["picked_recall"] += float(listed.sum())
        total += float(targets.sum())
        rare_total += float(targets[:, rare].sum())
    return {name: value / (rare_total if name == "rare_recall" else total) for name, value in found.items()}


if __name__ == "__main__":
    main()
