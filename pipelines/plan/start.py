"""The settings that a plan starts from: a published recipe, or the small ones for a CPU."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch

from kappaseg_core.backbones import build_backbone
from kappaseg_core.config import BackboneConfig
from kappaseg_core.errors import UserError
from pipelines.plan.fingerprint import Fingerprint
from pipelines.published.query2label import BATCH, EPOCHS
from pipelines.published.recipe import RANKER, Settings
from pipelines.published.segmenter import VIT_B, VIT_L
from pipelines.published.sets import SETS, DataSet
from pipelines.published.table import RECIPES

Part = Literal["stage1", "stage2", "joint"]
LEAST = 1000  # steps of stage two, where a recipe's epochs are fewer

#: those of configs/quick, which train on two CPU cores within minutes
QUICK: dict[Part, Settings] = {
    "stage1": {
        "backbone": {
            "name": "mobilenetv2_100", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "options": {"pad_type": "same"},
        },
        "head": {"preset": "fast", "width": 256, "ffn": 512, "heads": 4, "decoder_layers": 1, "dropout": 0.3},
        "loss": {"gamma_neg": 0},
        "augment": {"image_size": 320, "crop": 0.5, "flip": 0.5, "randaugment_ops": 0, "cutout": 0},
        "optim": {"lr": 5e-4, "warmup": 0.1, "schedule": "cosine"},
        "loop": {"steps": 300, "batch_size": 16, "ema": 0.99, "cached_views": 6, "save_every": 100},
    },
    "stage2": {
        "backbone": {
            "name": "mobilenetv2_100", "level": 16, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
            "options": {"pad_type": "same"},
        },
        "host": {"kind": "segmenter", "options": {"width": 128, "heads": 4, "attention_dropout": 0}},
        "source": {"train": "cache", "kappa": None},
        "augment": {"short_side": 320, "scale": [0.75, 1.5], "crop": 320, "photometric": False},
        "loss": {"stride": 8},
        "inference": {"short_side": 320},
        "optim": {
            "kind": "adamw", "lr": 2e-3, "weight_decay": 0.05, "schedule": "cosine", "warmup": 0.1, "clip": 1.0,
        },
        "loop": {"steps": 400, "batch_size": 8, "cached_views": 6, "save_every": 100},
    },
}  # fmt: skip
QUICK["joint"] = {**QUICK["stage2"], "source": {"train": "joint", "kappa": None}, "labels": {"head": "encoder"}}


@dataclass(frozen=True)
class Start:
    """name: of the recipe, for people.   settings: of each part, without data.   crops: pixels a side, the published
    one for the backbone or the small one."""

    name: str
    settings: dict[Part, Settings]
    crop: int


def start(data: Fingerprint, *, gpu: bool, backbone: str | None, weights: str | None) -> Start:
    """On a GPU the published recipe of the vocabulary nearest in size, with its epochs; on a CPU the small one.

    backbone: another one, for all parts.   weights: its file. Raises UserError for a file without a backbone where the
    recipe has several, and for a backbone that there is none of.
    """
    if weights and not backbone and gpu:
        raise UserError("--weights is of one backbone, and the published recipes have two; name it with --backbone")
    found = published(data, backbone) if gpu else Start("configs/quick", deepcopy(QUICK), 320)
    for part, settings in found.settings.items():
        if backbone and backbone != settings["backbone"]["name"]:
            settings["backbone"] = other_backbone(backbone, part, settings["backbone"].get("frozen"))
        if weights:
            settings["backbone"]["weights"] = weights
    return found


def published(data: Fingerprint, backbone: str | None) -> Start:
    near = min(SETS, key=lambda known: abs(known.classes - data.classes))
    size = VIT_L if backbone == VIT_L.name else VIT_B
    names: dict[Part, str] = {
        "stage1": RANKER, "stage2": f"segmenter_{size.stem}_independent", "joint": f"segmenter_{size.stem}_joint",
    }  # fmt: skip
    settings = {part: deepcopy(RECIPES[f"{near.name}/{name}"].settings) for part, name in names.items()}
    for part, values in settings.items():
        values.pop("name", None)
        values.pop("data")
        values["loop"] |= lengths(part, near, data)
    return Start(f"configs/{near.name}", settings, near.crop[size.size])


def lengths(part: Part, near: DataSet, data: Fingerprint) -> dict[str, int]:
    """As many epochs as the recipe has; of stage two no fewer than LEAST steps and no more than the recipe's."""
    if part == "stage1":
        epoch = max(1, data.train // BATCH)
        return {"steps": EPOCHS * epoch, "eval_every": epoch}
    steps = min(near.steps, max(LEAST, 100 * round(near.steps * data.train / near.train / 100)))
    return {"steps": steps, "eval_every": steps // 10}


def other_backbone(name: str, part: Part, frozen: bool | None) -> dict[str, Any]:
    """Settings of a backbone that the recipe does not have: the map of stride 16 where it has one, else its last."""
    settings: dict[str, Any] = {"name": name, "frozen": frozen}
    if part != "stage1" and has_level(name, 16):
        settings["level"] = 16
    return settings


def has_level(name: str, level: int) -> bool:
    """Whether a network has a map of this stride that is not its last. Raises UserError for an unknown name."""
    with torch.device("meta"):
        if build_backbone(BackboneConfig(name=name, frozen=False)).stride == level:
            return False
        try:
            build_backbone(BackboneConfig(name=name, frozen=False, level=level))
        except UserError:
            return False
    return True
