"""Recipes of stage two that nobody published: the encoder-only host on DINOv3, after the recipe of EoMT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.published.recipe import RANKER, Recipe, Settings, scenes
from pipelines.published.sets import ADE20K, ADE20K_FULL, COCO_STUFF10K, DataSet

SETS = (ADE20K, COCO_STUFF10K, ADE20K_FULL)
BATCH = 16
NOT_RUN = "ours, after EoMT's release; not run"
TITLES = {
    "baseline": "baseline: all labels",
    "joint": "joint: ranks by a linear layer on the patches, before labels join them",
    "oracle": "oracle: the labels present, in training and test",
    "independent": f"independent: the rankings of {RANKER}",
}


@dataclass(frozen=True)
class Backbone:
    """blocks: the last ones, that the labels join (EoMT's numbers)."""

    stem: str
    title: str
    name: str
    blocks: int
    schemes: tuple[str, ...] = ("baseline", "joint")

    @property
    def weights(self) -> str:
        return f"{self.name}.lvd1689m"


BACKBONES = (
    Backbone("vit_s", "ViT-S/16", "vit_small_patch16_dinov3", 3),
    Backbone("vit_b", "ViT-B/16", "vit_base_patch16_dinov3", 3, tuple(TITLES)),
    Backbone("vit_l", "ViT-L/16", "vit_large_patch16_dinov3", 4),
)
NOTES = (
    "EoMT: 100 queries and matching, masks as wide as the backbone, the rate × 0.8 for each block further down, 31 "
    "epochs of ADE20K. Here: the kept labels instead of queries, narrower masks, one factor for the backbone, as many "
    "images as in the recipes of the Segmenter.",
    "The weights are under the DINOv3 licence, those of AugReg (vit_base_patch16_384 and the like) under Apache-2.0.",
)


def encoder_only(data: DataSet) -> Iterator[Recipe]:
    """Every recipe of this host on a data set."""
    if data in SETS:
        for backbone in BACKBONES:
            for scheme in backbone.schemes:
                yield recipe_of(data, backbone, scheme)


def recipe_of(data: DataSet, backbone: Backbone, scheme: str) -> Recipe:
    stem = f"encoder_only_{backbone.stem}_{scheme}"
    crop, steps = data.crop[0], data.steps * 8 // BATCH
    settings: Settings = {
        "name": stem,
        "data": scenes(data),
        "backbone": {"name": backbone.name, "frozen": False},
        "host": {"kind": "encoder_only", "options": {"blocks": backbone.blocks, "mask_attention": "annealed"}},
        "source": source(data, scheme),
        **({"labels": {"head": "pooled", "options": {"pooling": "log_sum_exp"}}} if scheme == "joint" else {}),
        "augment": {"short_side": data.short_side[0], "scale": [0.5, 2.0], "crop": crop},
        "inference": {"mode": "slide", "short_side": data.short_side[0], "window": crop, "stride": crop},
        "optim": {
            "kind": "adamw", "lr": 1e-4, "backbone_lr": 0.1, "weight_decay": 0.05, "schedule": "cosine", "warmup": 0.05,
        },
        "loop": {
            "steps": steps, "batch_size": BATCH, "eval_every": steps // 10, "save_every": 1000, "loader_workers": 8,
            "precision": "bf16",
        },
    }  # fmt: skip
    return Recipe(
        data, stem, f"Encoder-only {backbone.title}, {TITLES[scheme]}",
        "run-joint" if scheme == "joint" else "run-stage2", settings, NOT_RUN, NOTES,
        backbone=f"{backbone.stem}_dinov3", weights=backbone.weights, network=stem.replace("_oracle", "_baseline"),
        own=True,
    )  # fmt: skip


def source(data: DataSet, scheme: str) -> Settings:
    if scheme == "baseline":
        return {"train": "complete"}
    if scheme == "oracle":
        return {"train": "oracle"}
    return {"train": "joint" if scheme == "joint" else "cache", "kappa": data.kappa}
