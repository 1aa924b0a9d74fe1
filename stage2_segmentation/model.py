"""The segmentation network: image and ranking → logits of the kept labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from kappaseg_core.backbones import Backbone, build_backbone
from kappaseg_core.config import BackboneConfig, build
from kappaseg_core.ranking import PADDING_LOGIT, Ranking, complete_ranking
from stage2_segmentation.config import HostConfig, Stage2Config
from stage2_segmentation.hosts import build_host
from stage2_segmentation.sources import ranks_of


class SegmentationModel(nn.Module):
    """Backbone and host. forward: images f32 [B, 3, H, W], ranking of B images → rank_logits f32 [B, κ, h, w].

    all_labels: K for a network that is trained on the complete ranking, else None. Such a network is run on all K
    labels in evaluation too, and a shorter ranking then picks among its outputs: this is known truth "at evaluation
    only" (Fig. 3, He et al. 2022), where the network is the plain one and knows nothing of a ranking.
    """

    def __init__(self, backbone: Backbone, host: nn.Module, *, all_labels: int | None = None) -> None:
        super().__init__()
        self.backbone, self.host, self.all_labels = backbone, host, all_labels

    @property
    def cell(self) -> int:
        """Side of a cell of the logits, in pixels."""
        return self.backbone.stride

    def forward(self, images: Tensor, ranking: Ranking) -> Tensor:
        features = self.backbone(images)
        if self.all_labels is None or self.training:
            logits: Tensor = self.host(features, ranking)
            return logits
        logits = self.host(features, complete_ranking(len(images), self.all_labels, images.device))
        picked = logits.gather(1, ranking.labels[..., None, None].expand(-1, -1, *logits.shape[2:]))
        return picked.masked_fill(~ranking.valid[..., None, None], PADDING_LOGIT)


def build_segmentation(
    backbone: BackboneConfig, host: HostConfig, *, num_classes: int, kappa: int, image_size: int,
    all_labels: bool = False,
) -> SegmentationModel:  # fmt: skip
    """A new network: backbone from its weight file where one is named, host from random numbers.

    kappa: ranks seen in training, the length of the rank scale (K for the plain baseline).
    all_labels: it is trained on the complete ranking.
    """
    trunk = build_backbone(backbone, image_size=image_size)
    head = build_host(host.kind, num_classes=num_classes, in_channels=trunk.channels, kappa=kappa, options=host.options)
    return SegmentationModel(trunk, head, all_labels=num_classes if all_labels else None)


def build_model(config: dict[str, Any], class_names: tuple[str, ...]) -> SegmentationModel:
    """A run's network from its record, without weights (`load_model` fills them in)."""
    known = build(Stage2Config, config, source="run.yaml")
    empty = replace(known.backbone, weights=None, frozen=known.backbone.is_frozen)
    return build_segmentation(
        empty, known.host, num_classes=len(class_names),
        kappa=scale_length(known, len(class_names)), image_size=known.augment.crop,
        all_labels=known.source.train == "complete",
    )  # fmt: skip


def scale_length(config: Stage2Config, num_classes: int) -> int:
    """Ranks that the rank scale has parameters for."""
    return ranks_of(config.source.train, config.source.kept(num_classes), num_classes)
