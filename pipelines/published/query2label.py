"""Recipes of stage one: Query2Label on three backbones, and the ranking of all images with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.published.recipe import NO_CODE, RANKER, Recipe, Settings, scenes
from pipelines.published.sets import DataSet

EPOCHS, BATCH, PATIENCE = 80, 64, 8


@dataclass(frozen=True)
class Backbone:
    """image_size: side of the square that images are resized to, in pixels.   note: where the recipe and the release
    differ."""

    stem: str
    title: str
    name: str
    weights: str
    image_size: int
    note: str = ""


FREEZES = "Query2Label's release keeps the first stage {more}as it was; here all is trained."
BACKBONES = (
    Backbone(
        "resnet101", "ResNet-101", "resnet101", "resnet101.tv_in1k", 448,
        FREEZES.format(more="and all batch-norm statistics "),
    ),
    Backbone("tresnet_l", "TResNet-L", "tresnet_l", "tresnet_l.miil_in1k_448", 448, FREEZES.format(more="")),
    Backbone("swin_l", "Swin-L", "swin_large_patch4_window12_384", "swin_large_patch4_window12_384.ms_in22k", 384),
)  # fmt: skip
ADAM = "Paper: Adam. Here, as in Query2Label's release: AdamW."
SIZES = "Sizes of the head are our reading of the paper's parameter count, which neither paper nor release states."


def classifiers(data: DataSet) -> Iterator[Recipe]:
    """Stage one on a data set, and the ranking of its images; of panoptic sets, which the paper's stage one does not
    have, the classifier alone that ranks."""
    for backbone in BACKBONES:
        if not data.objects or f"query2label_{backbone.stem}" == RANKER:
            yield classifier(data, backbone)
    yield Recipe(
        data, "rank", "Label cache: every image's labels as ranked by RUN/stage1", "rank",
        {"data": scenes(data), "batch_size": BATCH}, NO_CODE,
        ("Rankings of training images by a classifier that did not see them: --folds 4.",), network=RANKER,
    )  # fmt: skip


def length(data: DataSet) -> str:
    stop = f"stops after {PATIENCE} without a better class coverage (release: mAP)"
    return f"At most {EPOCHS} epochs of {data.train:,} images; {stop}."


def classifier(data: DataSet, backbone: Backbone) -> Recipe:
    epoch = data.train // BATCH  # the last, smaller batch is dropped
    settings: Settings = {
        "data": scenes(data),
        "backbone": {"name": backbone.name, "frozen": False},
        "head": {"preset": "rankseg"},
        "loss": {"gamma_neg": 2.0, "gamma_pos": 0.0, "clip": 0.0},
        "augment": {"image_size": backbone.image_size, "randaugment_ops": 2, "cutout": 0.5},
        "optim": {
            "kind": "adamw", "lr": 1e-4, "weight_decay": 1e-2, "schedule": "one_cycle", "warmup": 0.2, "clip": None,
        },
        "loop": {
            "steps": EPOCHS * epoch, "batch_size": BATCH, "ema": 0.9997, "precision": "bf16", "eval_every": epoch,
            "patience": PATIENCE, "save_every": 1000, "loader_workers": 8,
        },
    }  # fmt: skip
    return Recipe(
        data, f"query2label_{backbone.stem}", f"Query2Label {backbone.title}", "run-stage1", settings,
        "those of Query2Label's release (there in fp16), which the paper describes",
        (length(data), ADAM, SIZES, *filter(None, [backbone.note])), backbone=backbone.stem, weights=backbone.weights,
    )  # fmt: skip
