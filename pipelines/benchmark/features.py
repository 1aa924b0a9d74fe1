"""The features of a frozen backbone, computed once for all networks of a seed that train on them."""

from __future__ import annotations

from pathlib import Path

import torch

from kappaseg_core.config import build
from kappaseg_core.placement import place
from kappaseg_core.scenes import open_scenes
from kappaseg_core.seeding import seed_of
from kappaseg_core.views import training_bank
from pipelines.benchmark.config import Settings
from stage1_multilabel import augment as label_views
from stage1_multilabel.classifier import build_classifier
from stage1_multilabel.config import Stage1Config
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.model import build_segmentation
from stage2_segmentation.train import training_crops


def compute_features(settings: Settings, *, target: str) -> Path:
    """The folder of the views' features, as a training with these settings would make it.

    settings: of one of the networks.   target: what the views carry beside: "labels" (stage one), or "mask" and objects
    where the network learns them.
    """
    return label_features(settings) if target == "labels" else mask_features(settings)


def label_features(settings: Settings) -> Path:
    config = build(Stage1Config, settings)
    train = open_scenes(config.data, config.data.train)
    torch.manual_seed(seed_of(config.loop.seed, "init"))
    trunk = build_classifier(
        config.backbone, config.head, num_classes=len(train.class_names), image_size=config.augment.image_size
    ).backbone
    views = label_views.TrainExamples(train, config.augment, trunk.mean, trunk.std)
    return training_bank(config, "labels", views, train, trunk, place(config.loop, to_train=True)).folder


def mask_features(settings: Settings) -> Path:
    config = build(Stage2Config, settings)
    train = open_scenes(config.data, config.data.train)
    torch.manual_seed(seed_of(config.loop.seed, "init"))
    network = build_segmentation(config, len(train.class_names))
    views = training_crops(network, train, config.augment)
    here = place(config.loop, to_train=True)
    return training_bank(config, views.target, views, train, network.backbone, here).folder
