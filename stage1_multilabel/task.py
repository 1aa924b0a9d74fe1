"""What stage one learns: which labels an image holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kappaseg_core.config import LabelLossConfig, OptimConfig
from kappaseg_core.label_loss import AsymmetricLoss
from kappaseg_core.optim import Part, backbone_part, parameter_groups
from kappaseg_core.structures import Batch
from stage1_multilabel.classifier import Classifier


class MultiLabelTask(nn.Module):
    """Batch (image or features, labels f32 [B, K]) → asymmetric loss, in fp32."""

    def __init__(self, model: Classifier, loss: LabelLossConfig) -> None:
        super().__init__()
        self.model = model
        self.loss = AsymmetricLoss.of(loss)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.labels is not None
        logits = self.model(batch.image) if batch.features is None else self.model.head(batch.features[-1]).float()
        loss = self.loss(logits, batch.labels)
        with torch.no_grad():
            hits = ((logits > 0) & (batch.labels > 0)).sum() / batch.labels.clamp(min=0).sum().clamp(min=1)
        return loss, {"recall_at_half": hits}

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, Any]]:
        return parameter_groups([Part("head", self.model.head), backbone_part(self.model.backbone, optim)], optim)
