"""The network of a published configuration without weights: sizes on the "meta" device, no numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from kappaseg_core.activations import bytes_kept
from kappaseg_core.backbones import build_backbone
from kappaseg_core.config import BackboneConfig, build
from kappaseg_core.cost import Cost, count
from kappaseg_core.ranking import Ranking
from pipelines.published.estimate import Load
from pipelines.published.recipe import Recipe
from stage1_multilabel.classifier import build_classifier
from stage1_multilabel.config import Stage1Config
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.model import build_segmentation, scale_length

META = torch.device("meta")


@dataclass(frozen=True)
class Network:
    """run: one image through the network.   image_size: pixels a side.   ranks: labels that pixels are classified
    among; None for a network that segments nothing."""

    module: nn.Module
    run: Callable[[], Any]
    image_size: int
    ranks: int | None = None

    @cached_property
    def cost(self) -> Cost:
        """Of one image, in use."""
        self.module.eval()
        return count(self.module, self.run)

    def load(self) -> Load:
        """What training it takes, of one image."""
        self.module.train()
        kept = bytes_kept(self.module, self.run)
        return Load(self.cost.parameters, self.cost.macs, kept)


def network_of(recipe: Recipe) -> Network:
    """The network that a recipe trains."""
    if recipe.verb == "run-stage1":
        return classifier(build(Stage1Config, recipe.settings, source=recipe.path), recipe.data.classes)
    return segmenter(build(Stage2Config, recipe.settings, source=recipe.path), recipe.data.classes)


def classifier(config: Stage1Config, classes: int) -> Network:
    size = config.augment.image_size
    with META:
        module = build_classifier(config.backbone, config.head, num_classes=classes, image_size=size)
    return Network(module, partial(module, images(size)), size)


def segmenter(config: Stage2Config, classes: int) -> Network:
    """With a ranking of as many labels as it has ranks for."""
    size, ranks = config.augment.crop, scale_length(config, classes)
    with META:
        module = build_segmentation(config, classes)
    return Network(module, lambda: module.segment(module.look(images(size)), best(ranks)), size, ranks)


def backbone(name: str, image_size: int) -> Network:
    with META:
        module = build_backbone(BackboneConfig(name=name, frozen=False), image_size=image_size)
    return Network(module, partial(module, images(image_size)), image_size)


def images(size: int) -> Tensor:
    return torch.zeros(1, 3, size, size, device=META)


def best(kappa: int) -> Ranking:
    """A ranking of one image."""
    labels = torch.zeros(1, kappa, dtype=torch.int64, device=META)
    return Ranking(labels, labels.float(), labels.bool())
