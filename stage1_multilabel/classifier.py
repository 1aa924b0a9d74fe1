"""The classifier: image → one logit per label."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from kappaseg_core.backbones import Backbone, build_backbone
from kappaseg_core.config import BackboneConfig, build
from kappaseg_core.label_heads import LabelHead, build_head
from stage1_multilabel.config import HeadConfig, Stage1Config


class Classifier(nn.Module):
    """Backbone and label head. forward: images f32 [B, 3, S, S], normalised → logits f32 [B, K]."""

    def __init__(self, backbone: Backbone, head: LabelHead, num_classes: int) -> None:
        super().__init__()
        self.backbone, self.head, self.num_classes = backbone, head, num_classes

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images))
        return logits.float()


def build_classifier(backbone: BackboneConfig, head: HeadConfig, *, num_classes: int, image_size: int) -> Classifier:
    """A new classifier: backbone from its weight file where one is named, head from random numbers."""
    trunk = build_backbone(backbone, image_size=image_size)
    return Classifier(trunk, build_head(head.preset, trunk.channels, num_classes, **head.overrides()), num_classes)


def build_model(config: dict[str, Any], class_names: tuple[str, ...]) -> Classifier:
    """A run's network from its record, without weights (`load_model` fills them in)."""
    known = build(Stage1Config, config, source="run.yaml")
    empty = replace(known.backbone, weights=None, frozen=known.backbone.is_frozen)
    return build_classifier(empty, known.head, num_classes=len(class_names), image_size=known.augment.image_size)
