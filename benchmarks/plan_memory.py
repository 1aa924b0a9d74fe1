"""Memory that `kappaseg plan` estimates, beside that of the runs.

    OMP_NUM_THREADS=1 python benchmarks/plan_memory.py

Every case is a configuration of a real command, run for a few steps with an evaluation and a checkpoint, on synthetic
scenes, each in a process of its own. Measured is the largest resident memory of the run (peak_memory_mib of its
summary); estimated is what `kappaseg plan --check` says. The result is benchmarks/results/plan_memory.json; --only runs
some of the cases and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from experiments import machine as this_machine

from kappaseg_core.config import DataConfig, load_config
from pipelines.plan.base import base_mib
from pipelines.plan.choose import KINDS
from pipelines.plan.estimate import memory_of
from pipelines.plan.files import VERBS
from pipelines.plan.fingerprint import fingerprint_of
from pipelines.plan.machine import Machine
from pipelines.plan.start import Part

RESULTS = Path(__file__).parent / "results" / "plan_memory.json"
TINY, SMALL, MOBILE = "vit_tiny_patch16_384", "vit_small_patch16_384", "mobilenetv2_100"
SWIN = "swin_tiny_patch4_window7_224"
Settings = dict[str, Any]


def two(name: str, crop: int, batch: int, kappa: int, **more: Settings) -> Settings:
    """Stage two, with κ labels in all: the plain baseline holds what κ kept ones do."""
    settings: Settings = {
        "data": scenes(kappa, max(256, crop)),
        "backbone": {"name": name, "frozen": False, "level": 0 if "vit" in name else 16},
        "source": {"train": "complete"},
        "augment": {"crop": crop, "short_side": crop},
        "inference": {"mode": "slide", "short_side": crop, "window": crop, "stride": crop},
        "optim": {"kind": "sgd", "lr": 1e-3},
        "loop": {"steps": 4, "batch_size": batch, "save_every": 2},
    }
    return laid_over(settings, more)


def one(name: str, size: int, batch: int, classes: int, **more: Settings) -> Settings:
    settings: Settings = {
        "data": scenes(classes, 256),
        "backbone": {"name": name, "frozen": False},
        "augment": {"image_size": size},
        "loop": {"steps": 4, "batch_size": batch, "save_every": 2},
    }
    return laid_over(settings, more)


def laid_over(settings: Settings, more: Settings) -> Settings:
    return {**settings, **{name: {**settings.get(name, {}), **values} for name, values in more.items()}}


def scenes(classes: int, size: int) -> Settings:
    return {"kind": "synthetic", "options": {"classes": classes, "size": size, "train": 16, "val": 4}}


BF16 = {"precision": "bf16"}
AGAIN = {"checkpointing": True}
JOINT = {"source": {"train": "joint", "kappa": 50}, "labels": {"head": "encoder"}}
CASES: dict[str, tuple[Part, Settings]] = {
    "ViT-T, 128 pixels, batch 1, κ = 10": ("stage2", two(TINY, 128, 1, 10)),
    "ViT-T, 256 pixels, batch 8, κ = 50": ("stage2", two(TINY, 256, 8, 50)),
    "ViT-T, 512 pixels, batch 2, κ = 100": ("stage2", two(TINY, 512, 2, 100)),
    "ViT-T, 512 pixels, batch 2, κ = 100, bf16": ("stage2", two(TINY, 512, 2, 100, loop=BF16)),
    "ViT-T, 512 pixels, batch 2, κ = 100, checkpointing": ("stage2", two(TINY, 512, 2, 100, backbone=AGAIN)),
    "ViT-T, 512 pixels, batch 8 in 4, κ = 100": ("stage2", two(TINY, 512, 8, 100, loop={"accumulate": 4})),
    "ViT-T, 512 pixels, batch 4, κ = 100, checkpointing, bf16": (
        "stage2", two(TINY, 512, 4, 100, backbone=AGAIN, loop=BF16),
    ),
    "ViT-S, 256 pixels, batch 2, κ = 50, AdamW, averaged": (
        "stage2", two(SMALL, 256, 2, 50, optim={"kind": "adamw"}, loop={"ema": 0.99}),
    ),
    "MobileNetV2, 256 pixels, batch 8, κ = 50": ("stage2", two(MOBILE, 256, 8, 50)),
    "MobileNetV2, 512 pixels, batch 4, κ = 100, bf16": ("stage2", two(MOBILE, 512, 4, 100, loop=BF16)),
    "MobileNetV2 frozen, 6 views stored, 320 pixels, batch 8": (
        "stage2", two(MOBILE, 320, 8, 50, backbone={"frozen": True}, loop={"cached_views": 6}),
    ),
    "ResNet-50, 256 pixels, batch 4, κ = 50": ("stage2", two("resnet50", 256, 4, 50)),
    "joint: ViT-T, 256 pixels, batch 8, κ = 50 of 500": ("joint", laid_over(two(TINY, 256, 8, 500), JOINT)),
    "joint: ViT-T, 512 pixels, batch 2, κ = 50 of 500, checkpointing, bf16": (
        "joint", laid_over(two(TINY, 512, 2, 500, backbone=AGAIN, loop=BF16), JOINT),
    ),
    "joint: MobileNetV2, 320 pixels, batch 4, κ = 50 of 200": ("joint", laid_over(two(MOBILE, 320, 4, 200), JOINT)),
    "stage one: Swin-T, 224 pixels, batch 4, K = 100": ("stage1", one(SWIN, 224, 4, 100)),
    "stage one: Swin-T, 224 pixels, batch 4, K = 1,000, bf16": ("stage1", one(SWIN, 224, 4, 1000, loop=BF16)),
    "stage one: Swin-T, 224 pixels, batch 8, K = 4,000, 500 at a time": (
        "stage1", one(SWIN, 224, 8, 4000, head={"preset": "fast", "chunk": 500}),
    ),
    "stage one: MobileNetV2, 320 pixels, batch 8, K = 100": (
        "stage1", one(MOBILE, 320, 8, 100, head={"preset": "fast"}),
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases with this in their name")
    only = parser.parse_args().only
    found = json.loads(RESULTS.read_text("utf-8"))["cases"] if only and RESULTS.exists() else {}
    for name, figures in compared(only):
        found[name] = figures
        result = {"machine": this_machine(), "cases": {name: found[name] for name in CASES if name in found}}
        RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")


def compared(only: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Estimated and measured MiB of each case."""
    here = Machine("cpu", 0.0, base_mib(), {})
    for name, (part, settings) in CASES.items():
        if only in name:
            with tempfile.TemporaryDirectory() as folder:
                estimated, measured = compare(part, settings, Path(folder), here)
            print(f"{name}: estimated {estimated}, measured {measured} MiB, {estimated / measured:.2f}", flush=True)
            yield name, {"estimated_mib": estimated, "measured_mib": measured, "process_mib": here.base_mib}


def compare(part: Part, settings: Settings, folder: Path, here: Machine) -> tuple[int, int]:
    file = folder / f"{part}.yaml"
    file.write_text(yaml.safe_dump({**settings, "out": str(folder / "runs")}), "utf-8")
    config = load_config(KINDS[part], file)
    assert isinstance(config.data, DataConfig)
    memory = memory_of(config, fingerprint_of(config.data, folder, 4), here)
    subprocess.run([sys.executable, "-m", "pipelines.cli", VERBS[part], str(file)], check=True, capture_output=True)
    (summary,) = (folder / "runs").glob("*/summary.json")
    return round(memory.total), json.loads(summary.read_text("utf-8"))["peak_memory_mib"]


if __name__ == "__main__":
    main()
