"""What stage two learns: the label of each pixel among the kept ones, and in the joint scheme which ones are kept.

Legend: B images, K all labels, H W pixels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from kappaseg_core.backbones import Wants
from kappaseg_core.class_rows import gives_rows
from kappaseg_core.config import OptimConfig
from kappaseg_core.errors import UserError
from kappaseg_core.label_loss import AsymmetricLoss
from kappaseg_core.label_sample import LabelSample, draw_labels
from kappaseg_core.optim import Part, backbone_part, parameter_groups
from kappaseg_core.ranking import OwnRanking, Ranking, force_missed, mix_missed, presence
from kappaseg_core.segments import Segments, segments_of
from kappaseg_core.structures import Batch
from stage2_segmentation.config import LabelsConfig, SourceConfig
from stage2_segmentation.hosts import LearnsSegments
from stage2_segmentation.losses import prediction_loss
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.sources import Source
from stage2_segmentation.structures import QueryPrediction, Seen


class SegmentTask(nn.Module):
    """Batch (image or features, mask i64 [B, H, W]) → loss.

    Cross-entropy over the kept labels, and with a label branch + weight · the label loss on the labels of the crop:
    L = L_seg + λ L_label (Sec. 3.4, He et al. 2022). The segmentation loss reaches the branch through the class tokens
    that it refines; choosing labels has no gradient. A host with a loss of its own learns the crop's segments by it.

    things: bool [K], for a host that learns objects. Raises UserError where it does and there are none, and for a
    stride of the pixel loss that the host has no use for.
    """

    def __init__(
        self, model: SegmentationModel, source: Source, num_classes: int, *,
        missed: SourceConfig, labels: LabelsConfig, loss_stride: int, things: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_loss(model, loss_stride, things)
        self.model = model
        self.source, self.num_classes, self.loss_stride = source, num_classes, loss_stride
        self.missed, self.labels = missed, labels
        self.label_loss = AsymmetricLoss.of(labels.loss)
        self.things = things

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.mask is not None
        if self.model.branch is None:
            return self.segmentation(self.seen(batch), batch)
        present = presence(batch.mask, self.num_classes)
        sample = draw_labels(present, self.labels.loss.negatives)
        seen = self.seen(batch, None if sample is None else sample.labels)
        assert seen.label_logits is not None
        label_loss = self.label_term(seen, present.float(), sample)
        stats = {"label_loss": label_loss.detach(), "label_recall": recalled(seen.label_logits, present)}
        if batch.progress < self.labels.warm_up:
            return self.labels.weight * label_loss + 0.0 * self.idle(), stats
        loss, numbers = self.segmentation(seen, batch)
        return loss + self.labels.weight * label_loss, {**numbers, **stats}

    def seen(self, batch: Batch, labels: Tensor | None = None) -> Seen:
        """What the network makes of the images, or of their features. labels: those that its branch learns from."""
        if batch.features is not None:
            return self.model.read(batch.features, labels=labels)
        assert batch.image is not None
        return self.model.look(batch.image, labels)

    def label_term(self, seen: Seen, targets: Tensor, sample: LabelSample | None) -> Tensor:
        """The label loss, with that of the further logits that learn the same labels.

        targets: f32 [B, K].   sample: the labels that seen.learnt_logits are of; None = all.
        """
        logits = seen.label_logits if seen.learnt_logits is None else seen.learnt_logits
        loss: Tensor = self.label_loss(logits, targets, sample)
        for weight, further in seen.supervised:
            loss = loss + weight * self.label_loss(further, targets)
        return loss

    def idle(self) -> Tensor | int:
        """A sum that depends on what the label loss does not: distributed training waits for all gradients.

        The label branch looks at the last map alone; so of several, or where the host runs blocks, not all is learnt.
        """
        model = self.model
        parts = [model.host] if model.backbone.wants == Wants() else [model.host, model.backbone]
        learnt = (p for part in parts for p in part.parameters() if p.requires_grad)
        return sum(p.sum() for p in learnt if not gives_rows(p))  # of whose rows none has a gradient

    def segmentation(self, seen: Seen, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.mask is not None
        ranking = self.ranking_for(seen, batch)
        prediction = self.model.segment(replace(seen, progress=batch.progress), ranking)
        if isinstance(prediction, QueryPrediction):
            return cast(LearnsSegments, self.model.host).loss(prediction, self.segments(batch), ranking)
        return prediction_loss(
            prediction, batch.mask, ranking, self.num_classes, cell=self.model.cell, stride=self.loss_stride
        )

    @torch.no_grad()
    def segments(self, batch: Batch) -> list[Segments]:
        """What the queries of a mask network have to find in each image: its objects and kinds of stuff, or one segment
        for each label that it shows."""
        mask, instances, things = batch.mask, batch.instances, self.things
        assert mask is not None
        if not cast(LearnsSegments, self.model.host).learns_objects:
            instances, things = torch.zeros_like(mask), torch.zeros(self.num_classes, dtype=torch.bool)
        assert instances is not None and things is not None
        things = things.to(mask.device)
        return [segments_of(*pair, things) for pair in zip(mask, instances, strict=True)]

    @torch.no_grad()
    def ranking_for(self, seen: Seen, batch: Batch) -> Ranking:
        """The source's ranking, or the network's own; labels of the crop that it missed may be put in."""
        assert batch.mask is not None
        ranking = self.source(batch.image_id, batch.mask)
        if isinstance(ranking, OwnRanking):
            assert seen.label_logits is not None
            ranking = ranking.of(seen.label_logits.sigmoid())
        ranking = ranking.to(batch.mask.device)
        share = forced_share(self.missed, batch.progress)
        if share == 0:
            return ranking
        present = presence(batch.mask, self.num_classes)
        if share < 1:
            present &= torch.rand(len(present), 1, device=present.device) < share
        return (mix_missed if self.missed.treatment == "mix" else force_missed)(ranking, present)

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, Any]]:
        model, labels = self.model, self.labels
        parts = [Part("host", model.host), backbone_part(model.backbone, optim)]
        if model.branch is not None:
            parts.append(Part("labels", model.branch, lr=labels.lr, weight_decay=labels.weight_decay))
        return parameter_groups(parts, optim)


def check_loss(model: SegmentationModel, stride: int, things: Tensor | None) -> None:
    """Raise UserError where the host's own loss cannot be had."""
    if not isinstance(model.host, LearnsSegments):
        return
    if stride > 1:
        raise UserError(
            f"loss.stride = {stride} thins out the pixels of a pixel-wise loss; a mask network's has none, set 1"
        )
    if model.host.learns_objects and things is None:
        raise UserError(
            "host.options.target = objects needs a data set that tells objects apart; use one, or set it to labels"
        )


def forced_share(missed: SourceConfig, progress: float) -> float:
    """Share of the images whose missed labels are forced into the ranking, at this point of the training."""
    if missed.treatment == "ignore":
        return 0.0
    return 1.0 if missed.fade is None else max(0.0, 1 - progress / missed.fade)


@torch.no_grad()
def recalled(logits: Tensor, present: Tensor) -> Tensor:
    """Share of the labels that are there among as many best ones: 1 for a perfect ranking of every image."""
    count = present.sum(1, keepdim=True)
    ranks = logits.argsort(dim=1, descending=True).argsort(dim=1)
    return ((ranks < count) & present).sum() / count.sum().clamp(min=1)
