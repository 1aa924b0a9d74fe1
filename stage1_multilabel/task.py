"""What stage one learns: which labels an image holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kappaseg_core.config import LabelLossConfig, OptimConfig
from kappaseg_core.label_heads import GroupDecoder, LabelHead, Shortlisted
from kappaseg_core.label_loss import AsymmetricLoss
from kappaseg_core.label_sample import draw_labels
from kappaseg_core.optim import Part, backbone_part, parameter_groups
from kappaseg_core.structures import Batch
from stage1_multilabel.classifier import Classifier


class MultiLabelTask(nn.Module):
    """Batch (image or features, labels f32 [B, K]) → asymmetric loss, in fp32.

    Over all labels, or over a sample of them. The layer that picks a short-list learns beside the head that it picks
    for, with a loss over all labels: it is linear, and costs next to nothing.
    """

    def __init__(self, model: Classifier, loss: LabelLossConfig) -> None:
        super().__init__()
        self.model = model
        self.loss, self.negatives = AsymmetricLoss.of(loss), loss.negatives

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.labels is not None
        features = self.model.backbone(batch.image) if batch.features is None else batch.features[-1]
        head, targets = self.model.head, batch.labels
        if not isinstance(head, Shortlisted):
            return self.learnt(head, features, targets)
        loss, numbers = self.learnt(head.then, features, targets)
        return loss + head.weight * self.loss(head.first(features), targets), numbers

    def learnt(self, head: LabelHead, features: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one head, and the share of the labels present that it gives at least one half."""
        sample = draw_labels(targets, self.negatives)
        if sample is None:
            logits = head(features).float()
        else:
            assert not isinstance(head, GroupDecoder | Shortlisted)
            logits = head.logits_for(features, sample.labels)
        loss = self.loss(logits, targets, sample)
        with torch.no_grad():
            there = targets if sample is None else targets[:, sample.labels]  # no label present is left out
            hits = ((logits > 0) & (there > 0)).sum() / there.clamp(min=0).sum().clamp(min=1)
        return loss, {"recall_at_half": hits}

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, Any]]:
        return parameter_groups([Part("head", self.model.head), backbone_part(self.model.backbone, optim)], optim)
