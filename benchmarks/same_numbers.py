"""Whether what this project computes in its own way gives the numbers of the published way: losses, label maps, mIoU.

    python benchmarks/same_numbers.py

Two Segmenters (ViT-T, random numbers, no dropout) start from the same weights and are trained on the same scenes in the
same order, one as the published code computes it (pipelines/bench/published_way.py), one as this project does; then
both segment the same new scenes. What differs is the order in which sums are taken. Two minutes of two cores; the
result is benchmarks/results/same_numbers.json.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kappaseg_core.config import DataConfig, OptimConfig
from kappaseg_core.files import write_text
from kappaseg_core.metrics import ConfusionSums
from kappaseg_core.optim import build_optimizer
from kappaseg_core.ranking import Ranking, complete_ranking, presence, to_label_space, to_rank_space, top_kappa
from kappaseg_core.scenes import open_scenes
from kappaseg_core.structures import Batch
from pipelines.bench.machine import machine
from pipelines.bench.published_way import attention_in_steps, loss_of_prediction, map_by_scatter, map_of_all_labels
from pipelines.bench.steps import Given, label_maps, network, pixel_prediction
from pipelines.bench.variants import BACKBONES, Variant, plain_config
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.task import SegmentTask

RESULTS = Path(__file__).parent / "results" / "same_numbers.json"
CLASSES, KAPPA, SIZE, IMAGES, STEPS = 150, 50, 128, 4, 60
DATA = DataConfig(kind="synthetic", options={"classes": CLASSES, "size": SIZE, "train": IMAGES * STEPS, "val": 16})
OPTIM = OptimConfig(kind="sgd", lr=0.01, weight_decay=0.0, clip=None)
CASES: dict[str, int | None] = {"all labels": None, f"κ = {KAPPA} kept labels": KAPPA}


def main() -> None:
    cases = {name: compared(kappa) for name, kappa in CASES.items()}
    record = {
        "machine": machine(), "classes": CLASSES, "size": SIZE, "images": IMAGES, "steps": STEPS,
        "validation_images": len(open_scenes(DATA, "val")), "cases": cases,
    }  # fmt: skip
    write_text(RESULTS, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for name, case in cases.items():
        print(name, case)


def compared(kappa: int | None) -> dict[str, Any]:
    """Both ways, and by how much they differ."""
    (losses, theirs, weights, maps), (own_losses, ours, own_weights, own_maps) = (
        trained(kappa, published=published) for published in (True, False)
    )
    return {
        "first_loss": losses[0], "last_loss": losses[-1],
        "loss_difference": max(abs(a - b) / a for a, b in zip(losses, own_losses, strict=True)),
        "weight_difference": float((weights - own_weights).abs().max() / weights.abs().max()),
        "equal_pixels": float((maps == own_maps).double().mean()), "miou": theirs, "own_miou": ours,
    }  # fmt: skip


def trained(kappa: int | None, *, published: bool) -> tuple[list[float], float, Tensor, Tensor]:
    """The loss of every step; then mIoU in 0..1, all weights in a row, and the label maps i64 [N, H, W]."""
    torch.manual_seed(0)
    plain = plain_config(BACKBONES["vit-t"])
    config = replace(plain, host=replace(plain.host, options={"dropout": 0.0}))
    variant = Variant("", config, CLASSES, kappa, train=True, way="plain", images=IMAGES, size=SIZE)
    model = network(variant)
    given = Given(complete_ranking(IMAGES, CLASSES))
    task = SegmentTask(model, given, CLASSES, missed=config.source, labels=config.labels, loss_stride=1)
    groups = task.parameter_groups(OPTIM)
    optimizer = build_optimizer(groups, OPTIM)
    for group in optimizer.param_groups:
        group["lr"] = OPTIM.lr
    losses = []
    for step in range(STEPS):
        images, masks = scenes("train", slice(step * IMAGES, (step + 1) * IMAGES))
        ranking = kept(masks, kappa, seed=step)
        optimizer.zero_grad()
        with attention_in_steps() if published else nullcontext():
            if published:
                loss = loss_of_prediction(
                    pixel_prediction(model, images, ranking), to_rank_space(masks, ranking, CLASSES)
                )
            else:
                task.source = Given(ranking)
                loss, _ = task(Batch(tuple(map(str, range(IMAGES))), image=images, mask=masks))
            loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    maps, miou = measured(model.eval(), kappa, published=published)
    return losses, miou, torch.cat([p.detach().flatten() for p in model.parameters()]), maps


@torch.inference_mode()
def measured(model: SegmentationModel, kappa: int | None, *, published: bool) -> tuple[Tensor, float]:
    """Label maps of the validation scenes, and their mIoU."""
    images, masks = scenes("val", slice(None))
    ranking, size = kept(masks, kappa, seed=-1), (SIZE, SIZE)
    if published:
        with attention_in_steps():
            logits = pixel_prediction(model, images, ranking).rank_logits.float()
        if kappa is None:
            maps = to_label_space(map_of_all_labels(logits, size), ranking)
        else:
            maps = map_by_scatter(logits, ranking.labels, CLASSES, size)
    else:
        maps = label_maps(model, images, ranking, size)
    sums = ConfusionSums(CLASSES)
    sums.update(maps, masks)
    return maps, float(sums.summary()["mIoU"])


def scenes(split: str, which: slice) -> tuple[Tensor, Tensor]:
    """Images f32 [B, 3, H, W] about zero, and masks i64 [B, H, W]."""
    opened = open_scenes(DATA, split)
    some = [opened[index] for index in range(len(opened))[which]]
    images = torch.stack([torch.from_numpy(scene.image) for scene in some])
    return images.float() / 127.5 - 1, torch.stack([torch.from_numpy(scene.mask).long() for scene in some])


def kept(masks: Tensor, kappa: int | None, *, seed: int) -> Ranking:
    """All labels, or those that are present among others at random."""
    if kappa is None:
        return complete_ranking(len(masks), CLASSES)
    scores = torch.rand(len(masks), CLASSES, generator=torch.Generator().manual_seed(seed % 2**31))
    return top_kappa(scores + 0.5 * presence(masks, CLASSES), kappa)


if __name__ == "__main__":
    main()
