"""The segmentation network: image and ranking → a prediction for the kept labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from kappaseg_core.backbones import Backbone, build_backbone
from kappaseg_core.config import build
from kappaseg_core.errors import UserError
from kappaseg_core.ranking import PADDING_LOGIT, Ranking, complete_ranking
from stage2_segmentation.branches import build_branch, class_table
from stage2_segmentation.config import LabelsConfig, Stage2Config
from stage2_segmentation.hosts import DecodesFirst, Host, LearnsSegments, build_host, wants_of
from stage2_segmentation.sources import ranks_of
from stage2_segmentation.structures import AnyPrediction, Prediction, QueryPrediction, Seen


class SegmentationModel(nn.Module):
    """Backbone, host, and in the joint scheme a label branch.

    forward: images f32 [B, 3, H, W], ranking of B images → Prediction. In two steps, for a ranking that comes from the
    network itself: `look` at the images, then `segment` what was seen.

    all_labels: K for a network that is trained on the complete ranking, else None. Such a network is run on all K
    labels in evaluation too, and a shorter ranking then picks among its outputs: this is known truth "at evaluation
    only" (Fig. 3, He et al. 2022), where the network is the plain one and knows nothing of a ranking.

    class_tokens: the class embeddings join the tokens before the backbone's last block ("OCE" in the release, which
    starts all of them from zero where pretrained weights are given, so that they stay alike; ours: truncated normal).
    """

    def __init__(
        self, backbone: Backbone, host: nn.Module, branch: nn.Module | None = None, *, all_labels: int | None = None,
        class_tokens: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.host, self.branch = backbone, host, branch
        self.all_labels, self.class_tokens = all_labels, class_tokens

    @property
    def cell(self) -> int:
        """Side of a cell of the logits, in pixels."""
        return cast(Host, self.host).cell

    @property
    def learns_objects(self) -> bool:
        """Whether the host tells the objects of a label apart, and so is trained on segments."""
        return isinstance(self.host, LearnsSegments) and self.host.learns_objects

    def forward(self, images: Tensor, ranking: Ranking) -> AnyPrediction:
        return self.segment(self.look(images), ranking)

    def look(self, images: Tensor, labels: Tensor | None = None) -> Seen:
        """Everything about images that does not depend on their ranking.

        labels: i64 [n], those that the label branch learns from in this step; None = all.
        """
        if self.class_tokens:
            features, classes = self.backbone.with_tokens(images, class_table(self.host))
            return self.read([features], classes, labels)
        if self.backbone.wants.last_blocks:
            begun = self.backbone.begin(images)
            return replace(self.read([begun.map(begun.norm(begun.tokens))], labels=labels), begun=begun)
        return self.read(self.backbone.maps(images), labels=labels)

    def read(self, maps: Sequence[Tensor], classes: Tensor | None = None, labels: Tensor | None = None) -> Seen:
        """The same from the backbone's maps [B, C_l, h_l, w_l]. A mask network decodes its queries here, and does not
        need the maps again: what is seen of an image's windows is kept until it is ranked."""
        decoded = self.host.decode(maps) if isinstance(self.host, DecodesFirst) else None
        kept = tuple(maps) if decoded is None else ()
        if self.branch is None:
            return Seen(maps[-1], classes=classes, maps=kept, decoded=decoded)
        only = () if labels is None else (labels,)
        seen: Seen = self.branch(self.host, maps[-1] if decoded is None else decoded.looked_at, classes, *only)
        return replace(seen, features=maps[-1], maps=kept, decoded=decoded)

    def segment(self, seen: Seen, ranking: Ranking) -> AnyPrediction:
        """The host's prediction for the kept labels."""
        host = cast(Host, self.host)
        if self.all_labels is None or self.training:
            return host(seen, ranking)
        every = complete_ranking(seen.features.shape[0], self.all_labels, seen.features.device)
        return picked(host(seen, every), ranking)


def picked(prediction: AnyPrediction, ranking: Ranking) -> AnyPrediction:
    """What a prediction for all K labels, in order of id, says of the labels of a ranking."""
    if isinstance(prediction, QueryPrediction):
        logits = prediction.class_logits
        ranks = logits.gather(2, ranking.labels[:, None].expand(-1, logits.shape[1], -1))
        ranks = ranks.masked_fill(~ranking.valid[:, None], PADDING_LOGIT)
        return QueryPrediction(torch.cat([ranks, logits[..., -1:]], 2), prediction.mask_logits)
    logits = prediction.rank_logits
    ranks = logits.gather(1, ranking.labels[..., None, None].expand(-1, -1, *logits.shape[2:]))
    return Prediction(ranks.masked_fill(~ranking.valid[..., None, None], PADDING_LOGIT))


def build_segmentation(config: Stage2Config, num_classes: int) -> SegmentationModel:
    """A new network: backbone from its weight file where one is named, the rest from random numbers."""
    wants = wants_of(config.host.kind, config.host.options)
    backbone = build_backbone(config.backbone, image_size=config.augment.crop, wants=wants)
    host = build_host(
        config.host.kind, num_classes=num_classes, maps=backbone.shapes,
        kappa=scale_length(config, num_classes), options=config.host.options,
    )  # fmt: skip
    joined = config.class_tokens == "backbone"
    if joined:
        check_class_tokens(config, backbone, host)
    branch = build_branch(
        config.labels.head, host, num_classes=num_classes, options=config.labels.options,
        in_channels=host.seen_channels if isinstance(host, DecodesFirst) else backbone.channels,
    )  # fmt: skip
    check_negatives(config.labels, branch)
    check_queries_seen(config, host, branch)
    if config.optim.selected_rows:
        check_rows(config, branch)
    return SegmentationModel(
        backbone, host, branch,
        all_labels=num_classes if config.source.train == "complete" else None, class_tokens=joined,
    )  # fmt: skip


def build_model(config: dict[str, Any], class_names: tuple[str, ...]) -> SegmentationModel:
    """A run's network from its record, without weights (`load_model` fills them in)."""
    known = build(Stage2Config, config, source="run.yaml")
    empty = replace(known.backbone, weights=None, frozen=known.backbone.is_frozen)
    return build_segmentation(replace(known, backbone=empty), len(class_names))


def scale_length(config: Stage2Config, num_classes: int) -> int:
    """Ranks that the rank scale has parameters for."""
    return ranks_of(config.source.train, config.source.kept(num_classes), num_classes)


def check_negatives(labels: LabelsConfig, branch: nn.Module | None) -> None:
    """Raise UserError where the branch learns from a sample of the labels, and cannot."""
    if labels.loss.negatives is not None and not getattr(branch, "samples_labels", False):
        raise UserError(
            f"labels.loss.negatives = {labels.loss.negatives}, but labels.head = {labels.head} does not score some "
            "labels alone; use labels.head decoder or pooled, or set it null"
        )


def check_queries_seen(config: Stage2Config, host: nn.Module, branch: nn.Module | None) -> None:
    """Raise UserError where the branch would average the queries that it looks at as if they were cells of a grid."""
    if isinstance(host, DecodesFirst) and host.labels_see_queries and getattr(branch, "pooled", None):
        raise UserError(
            f"labels.head = {config.labels.head} looks at the queries of {config.host.kind}, which are no grid of "
            "cells; set labels.options.pooled to 0, or host.options.labels_see to pixels"
        )


def check_rows(config: Stage2Config, branch: nn.Module | None) -> None:
    """Raise UserError where every step gives all class embeddings a gradient, so that none can be left out."""
    if config.class_tokens == "backbone":
        raise UserError(
            "optim.selected_rows = true, but class_tokens = backbone reads the class embeddings of all labels; leave "
            "it out, or use class_tokens host"
        )
    if getattr(branch, "shares_classes", False) and config.labels.loss.negatives is None:
        raise UserError(
            f"optim.selected_rows = true, but labels.head = {config.labels.head} learns through the class embeddings "
            "of all labels; leave it out, or use labels.head pooled, group, or decoder with labels.loss.negatives"
        )


def check_class_tokens(config: Stage2Config, backbone: Backbone, host: nn.Module) -> None:
    """Raise UserError where class tokens cannot join the backbone's last block."""
    if backbone.wants.last_blocks:
        raise UserError(
            f"host.kind = {config.host.kind} puts class tokens into the backbone itself; use class_tokens host"
        )
    if len(backbone.shapes) > 1:
        raise UserError(f"host.kind = {config.host.kind} takes several maps of the backbone; use class_tokens host")
    if not backbone.takes_tokens:
        raise UserError(
            f"class_tokens = backbone needs a plain ViT; {config.backbone.name} is none, use class_tokens host"
        )
    width = class_table(host).shape[1]
    if width != backbone.channels:
        raise UserError(
            f"class_tokens = backbone needs host.options.width = {backbone.channels}, the backbone's, found {width}"
        )
    if config.backbone.is_frozen:
        raise UserError("class_tokens = backbone needs a backbone that is trained; set backbone.frozen false")
