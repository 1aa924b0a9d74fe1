"""What each label branch of the joint scheme costs as the vocabulary grows.

    OMP_NUM_THREADS=1 python benchmarks/label_heads.py

One image, the map of a ViT-B/16 at 512 pixels (768 channels, 32 × 32 cells), random weights; the branch alone, without
backbone and mask transformer, and without reading the whole map into patch tokens, which the mask transformer does in
any case. Each figure is from a process of its own. "training" is a forward and a backward pass, dropout included, with
the ranking that selection needs; seconds are processor time; memory is what the process needs beyond its libraries,
weights included. What does not fit into the memory limit is null. The result is benchmarks/results/label_heads.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from experiments import machine
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.backbones import MapShape
from kappaseg_core.cost import count
from kappaseg_core.progress import memory_mib
from pipelines.benchmark.inference_memory import apart
from stage2_segmentation.branches import Seen, build_branch
from stage2_segmentation.hosts import build_host

RESULTS = Path(__file__).parent / "results" / "label_heads.json"
CHANNELS, SIDE = 768, 32
VOCABULARIES = (171, 1284, 10_000, 21_841)
PRESENT, NEGATIVES, SHORTLIST = 8, 512, 300
ENOUGH_SECONDS, MOST_RUNS = 1.0, 20

#: name → branch, options (the others are the published ones), and how many negatives it is trained on
HEADS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "encoder": ("encoder", {}, None),
    "encoder, patches alone": ("encoder", {"attend": "patches"}, None),
    "decoder": ("decoder", {}, None),
    "decoder, 500 labels at a time": ("decoder", {"chunk": 500}, None),
    f"decoder, {NEGATIVES} negatives": ("decoder", {}, NEGATIVES),
    f"decoder, short-list of {SHORTLIST}": ("decoder", {"shortlist": SHORTLIST}, None),
    f"decoder, {NEGATIVES} negatives, short-list of {SHORTLIST}": ("decoder", {"shortlist": SHORTLIST}, NEGATIVES),
    "group, 100 queries": ("group", {}, None),
    "pooled": ("pooled", {}, None),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=8.0, help="memory that one measurement may take, in GiB")
    given = parser.parse_args(arguments)
    results = {
        "command": " ".join(["python benchmarks/label_heads.py", *(arguments or sys.argv[1:])]),
        "machine": machine(), "map": [CHANNELS, SIDE, SIDE], "limit_gib": given.limit,
        "heads": label_head_costs(VOCABULARIES, given.limit),
    }  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def label_head_costs(vocabularies: Sequence[int], limit_gib: float) -> list[dict[str, Any]]:
    """One record for each branch and number of labels."""
    records = []
    for name, (kind, options, negatives) in HEADS.items():
        for classes in vocabularies:
            if max(options.get("shortlist", 0), negatives or 0) >= classes:
                continue  # which is all labels
            parts = [apart(within, limit_gib, part, kind, options, classes) for part in (counted, used)]
            parts.append(apart(within, limit_gib, trained, kind, options, classes, negatives))
            record = {"head": name, "classes": classes}
            for names, values in zip((COUNTED, USED, TRAINED), parts, strict=True):
                record |= dict.fromkeys(names) if values is None else dict(zip(names, values, strict=True))
            records.append(record)
            print(json.dumps(record), flush=True)
    return records


COUNTED, USED, TRAINED = ("parameters", "macs"), ("seconds", "memory_mib"), ("training_seconds", "training_memory_mib")


def counted(kind: str, options: dict[str, Any], classes: int) -> tuple[float, float]:
    host, branch, run = built(kind, options, classes)
    both = count(nn.ModuleList([host, branch]).eval(), run)
    return count(branch, lambda: None).parameters, both.macs


def used(kind: str, options: dict[str, Any], classes: int) -> tuple[float, float]:
    idle = memory_mib()
    _, branch, run = built(kind, options, classes)
    branch.eval()
    with torch.inference_mode():
        return processor_seconds(run), memory_mib() - idle


def trained(kind: str, options: dict[str, Any], classes: int, negatives: int | None) -> tuple[float, float]:
    idle = memory_mib()
    _, branch, run = built(kind, options, classes)
    branch.train()
    sampled = () if negatives is None else (torch.randperm(classes)[: PRESENT + negatives].sort().values,)

    def step() -> None:
        branch.zero_grad()
        seen = run(*sampled)
        learnt = [seen.label_logits if seen.learnt_logits is None else seen.learnt_logits]
        learnt += [logits for _, logits in seen.supervised]
        losses = [
            F.binary_cross_entropy_with_logits(each, torch.zeros_like(each)) for each in learnt if each is not None
        ]
        torch.stack(losses).sum().backward()

    return processor_seconds(step), memory_mib() - idle


def within(limit_gib: float, measure: Callable[..., tuple[float, float]], *arguments: Any) -> list[float] | None:
    """The measurement, or None where it needs more memory than that. For a process that ends afterwards."""
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0])
    now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + int(limit_gib * 2**30),) * 2)
    try:
        return [float(f"{value:.4g}") if isinstance(value, float) else value for value in measure(*arguments)]
    except MemoryError:
        return None
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        return None


def built(kind: str, options: dict[str, Any], classes: int) -> tuple[nn.Module, nn.Module, Callable[..., Seen]]:
    """A host and its branch with random weights, and what the branch makes of one image, perhaps of some labels."""
    torch.manual_seed(0)
    host = build_host(
        "segmenter", num_classes=classes, maps=[MapShape(CHANNELS, 16)], kappa=1,
        options={"depth": 1, "rank_scale": "shared"},
    )  # fmt: skip
    branch = build_branch(kind, host, num_classes=classes, in_channels=CHANNELS, options=options)
    assert branch is not None
    host.blocks = nn.ModuleList()  # no part of what is measured
    features = torch.randn(1, CHANNELS, SIDE, SIDE)
    with torch.no_grad():
        known = Known(host, features)

    def run(*labels: Tensor) -> Seen:
        seen: Seen = branch(known, features, None, *labels)
        return seen

    return host, branch, run


class Known:
    """A host that has read the whole map already."""

    def __init__(self, host: Any, features: Tensor) -> None:
        self.cls_emb, self.host = host.cls_emb, host
        self.features, self.patches = features, host.read(features)

    def read(self, features: Tensor) -> Tensor:
        if features is self.features:
            return self.patches
        tokens: Tensor = self.host.read(features)
        return tokens


def processor_seconds(run: Callable[[], object]) -> float:
    """Median of some runs; the first one counts only where it takes long."""
    taken: list[float] = []
    while sum(taken) < ENOUGH_SECONDS and len(taken) < MOST_RUNS:
        started = time.process_time()
        run()
        taken.append(time.process_time() - started)
    return statistics.median(taken[1:] or taken)


if __name__ == "__main__":
    main()
