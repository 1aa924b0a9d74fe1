"""The training step that images are fed to: how many it takes in a second on the device that is configured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kappaseg_core.handover import Handover
from kappaseg_core.optim import build_optimizer
from kappaseg_core.placement import Placement
from kappaseg_core.ranking import OwnRanking, Ranking, top_kappa
from stage1_multilabel.classifier import build_classifier
from stage1_multilabel.config import Stage1Config
from stage1_multilabel.task import MultiLabelTask
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.model import build_segmentation
from stage2_segmentation.sources import SourceInputs, build_source
from stage2_segmentation.task import SegmentTask

#: share of the training that lies behind: no warm-up of the label branch any more
LATE = 0.99
FEWEST, MOST = 2, 20  # steps that are measured, after one that is not


@dataclass(frozen=True)
class AnyLabels:
    """A ranking source that knows nothing: κ labels drawn for each image. A step takes as long as with a true one."""

    kappa: int
    num_classes: int
    fingerprint: str = "any labels"

    def __call__(
        self, image_ids: Sequence[str], mask: Tensor | None, image: Tensor | None = None
    ) -> Ranking | OwnRanking:
        return top_kappa(torch.rand(len(image_ids), self.num_classes), self.kappa)


def network_rate(
    config: Stage1Config | Stage2Config, class_names: tuple[str, ...], loaded: Handover, here: Placement, limit: float,
    *, things: Sequence[bool] | None = None,
) -> float:  # fmt: skip
    """Images per second of training steps on one micro-batch, over and over: the network and its optimiser alone.

    things: which labels are, for a network that learns objects.
    """
    task = task_of(config, class_names, things).to(here.device).train()
    optimizer = build_optimizer(task.parameter_groups(config.optim), config.optim)
    scaler = torch.amp.GradScaler(here.device.type, enabled=here.precision == "fp16")
    seconds: list[float] = []
    until = time.monotonic() + limit
    while len(seconds) <= FEWEST or (len(seconds) <= MOST and time.monotonic() < until):
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with here.autocast():
            loss, _ = task(loaded.batch(here.device, LATE))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return len(loaded.image_id) / statistics.median(seconds[1:])


def task_of(
    config: Stage1Config | Stage2Config, class_names: tuple[str, ...], things: Sequence[bool] | None = None
) -> Any:
    """The task of a configuration with random weights; its rankings are drawn where they would come from elsewhere."""
    count = len(class_names)
    if isinstance(config, Stage1Config):
        size = config.augment.image_size
        return MultiLabelTask(
            build_classifier(config.backbone, config.head, num_classes=count, image_size=size), config.loss
        )
    model = build_segmentation(config, count)
    kappa = min(config.source.kept(count), count)
    inputs = SourceInputs(kappa=kappa, class_names=class_names, splits={}, cache=Path(config.out) / "labels")
    own = config.source.train in ("joint", "complete", "oracle")
    source = build_source(config.source.train, inputs) if own else AnyLabels(kappa, count)
    return SegmentTask(
        model, source, count, missed=config.source, labels=config.labels, loss_stride=config.loss.stride,
        things=None if things is None else torch.tensor(things),
    )  # fmt: skip
