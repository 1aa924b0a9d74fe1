"""What stage two learns: the label of each pixel, among those that the ranking kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kappaseg_core.config import OptimConfig
from kappaseg_core.optim import parameter_groups
from kappaseg_core.ranking import Ranking, force_missed, presence
from kappaseg_core.structures import Batch
from stage2_segmentation.losses import segmentation_loss
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.sources import Source


class SegmentTask(nn.Module):
    """Batch (image or features, mask i64 [B, H, W]) → cross-entropy over the kept labels."""

    def __init__(
        self, model: SegmentationModel, source: Source, num_classes: int, *, force: bool, loss_stride: int
    ) -> None:
        super().__init__()
        self.model = model
        self.source, self.num_classes, self.force, self.loss_stride = source, num_classes, force, loss_stride

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.mask is not None
        ranking = self.ranking_for(batch.image_id, batch.mask)
        if batch.features is None:
            logits = self.model(batch.image, ranking)
        else:
            logits = self.model.host(batch.features, ranking)
        return segmentation_loss(
            logits, batch.mask, ranking, self.num_classes, cell=self.model.cell, stride=self.loss_stride
        )

    @torch.no_grad()
    def ranking_for(self, image_ids: tuple[str, ...], mask: Tensor) -> Ranking:
        """The source's ranking; with `force`, labels of the crop that it missed take its last ranks."""
        ranking = self.source(image_ids, mask).to(mask.device)
        return force_missed(ranking, presence(mask, self.num_classes)) if self.force else ranking

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, Any]]:
        return parameter_groups(self.model.host, self.model.backbone, optim)
