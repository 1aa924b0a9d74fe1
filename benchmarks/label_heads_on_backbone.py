"""What a label branch adds to the backbone that it stands on, at a vocabulary of 20,000.

    OMP_NUM_THREADS=2 python benchmarks/label_heads_on_backbone.py

ViT-B/16 with random weights on one image of 512 × 512, alone and with a branch of the joint scheme; "training" is a
step of AdamW over both, with the label loss on all labels or on a sample. Variants take turns (A B C A B C); seconds
are processor time over all threads. The result is benchmarks/results/label_heads_on_backbone.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from experiments import machine
from torch import Tensor, nn

from kappaseg_core.backbones import build_backbone
from kappaseg_core.config import BackboneConfig
from kappaseg_core.label_loss import binary_cross_entropy
from kappaseg_core.label_sample import draw_labels
from stage2_segmentation.branches import build_branch

RESULTS = Path(__file__).parent / "results" / "label_heads_on_backbone.json"
BACKBONE, SIZE, CLASSES, PRESENT = "vit_base_patch16_384", 512, 20_000, 8
#: name → branch, options, negatives; None = the backbone alone
VARIANTS: dict[str, tuple[str, dict[str, Any], int | None] | None] = {
    "backbone alone": None,
    "pooled": ("pooled", {}, None),
    "group, 100 queries": ("group", {}, None),
    "decoder, 512 negatives, short-list of 300": ("decoder", {"shortlist": 300}, 512),
}


class Host(nn.Module):
    """The class embeddings that branches share with a host."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cls_emb = nn.Parameter(torch.randn(CLASSES, width) * 0.02)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    steps = {name: step_of(variant) for name, variant in VARIANTS.items()}
    variants = []
    for mode in ("inference", "training"):
        taken = in_turns([partial(step, mode) for step in steps.values()], given.rounds)
        variants += [
            {"mode": mode, "name": name, "cpu_seconds": seconds} for name, seconds in zip(steps, taken, strict=True)
        ]
    results = {
        "command": " ".join(["python benchmarks/label_heads_on_backbone.py", *(arguments or sys.argv[1:])]),
        "machine": machine(), "backbone": BACKBONE, "size": SIZE, "classes": CLASSES, "variants": variants,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def step_of(variant: tuple[str, dict[str, Any], int | None] | None) -> Callable[[str], None]:
    """A network, ready to be used or trained."""
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(name=BACKBONE), image_size=SIZE)
    image, targets = torch.randn(1, 3, SIZE, SIZE), torch.zeros(1, CLASSES)
    targets[0, :PRESENT] = 1
    loss_of = binary_cross_entropy()
    parts = nn.ModuleList([backbone])
    branch, negatives = None, None
    if variant is not None:
        kind, options, negatives = variant
        host = Host(backbone.channels)
        branch = build_branch(kind, host, num_classes=CLASSES, in_channels=backbone.channels, options=options)
        assert branch is not None
        parts += [host, branch]
    optimizer = torch.optim.AdamW(parts.parameters(), lr=1e-5)

    def loss() -> Tensor:
        features = backbone(image)
        if branch is None:
            return features.square().mean()
        sample = draw_labels(targets, negatives)
        seen = branch(host, features, None, *(() if sample is None else (sample.labels,)))
        logits = seen.label_logits if seen.learnt_logits is None else seen.learnt_logits
        return loss_of(logits, targets, sample) + sum(w * loss_of(more, targets) for w, more in seen.supervised)

    def step(mode: str) -> None:
        parts.train(mode == "training")
        with torch.set_grad_enabled(mode == "training"):
            if mode == "training":
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()
            else:
                features = backbone(image)
                if branch is not None:
                    branch(host, features, None)

    return step


def in_turns(steps: Sequence[Callable[[], None]], rounds: int) -> list[list[float]]:
    """Processor seconds of each, one list per step; a first round warms up and does not count."""
    taken: list[list[float]] = [[] for _ in steps]
    for turn in range(rounds + 1):
        for step, mine in zip(steps, taken, strict=True):
            started = time.process_time()
            step()
            if turn:
                mine.append(round(time.process_time() - started, 4))
    return taken


if __name__ == "__main__":
    main()
