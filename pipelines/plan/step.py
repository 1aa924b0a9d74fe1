"""Steps of training and of evaluation without numbers: what they hold in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from kappaseg_core.config import LoopConfig, OptimConfig
from kappaseg_core.label_sample import LabelSample
from kappaseg_core.live_memory import LiveMemory, imagined
from kappaseg_core.optim import build_optimizer
from kappaseg_core.ranking import OwnRanking, Ranking, to_rank_space
from kappaseg_core.structures import Batch
from kappaseg_core.views import GROUP
from pipelines.imagined_segments import imagined_segments
from pipelines.plan.fingerprint import Fingerprint
from stage1_multilabel.classifier import Classifier, build_classifier
from stage1_multilabel.config import Stage1Config
from stage1_multilabel.scoring import BATCH
from stage1_multilabel.task import MultiLabelTask
from stage2_segmentation.augment import scaled_size
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.hosts import LearnsSegments, learns_objects
from stage2_segmentation.inference import WINDOWS_AT_ONCE, corners
from stage2_segmentation.losses import UpsampledCrossEntropy
from stage2_segmentation.model import SegmentationModel, build_segmentation, scale_length
from stage2_segmentation.pixels import Axis, axis_weights
from stage2_segmentation.sources import ranks_of
from stage2_segmentation.structures import QueryPrediction, Seen
from stage2_segmentation.task import SegmentTask

Config = Stage1Config | Stage2Config
Task = MultiLabelTask | SegmentTask


@dataclass(frozen=True)
class Held:
    """Bytes of tensors.

    lasting: parameters and buffers, their gradients, the optimiser's state and averaged weights: what is there between
    two steps.   training, evaluating: the most at one time.   stored: features of an image that are computed once.
    """

    lasting: int
    training: int
    evaluating: int
    stored: int


def held(config: Config, data: Fingerprint, *, gpu: bool) -> Held:
    """What the training that `config` describes holds, its evaluation included.

    gpu: as on a GPU, otherwise as on a CPU.
    """
    classes, image = data.classes, data.median_size
    task = empty_task(config, classes)
    with imagined(fused=gpu), samples_of(data), LiveMemory() as live:
        task.to_empty(device="cpu")
        live.add([*task.parameters(), *task.buffers()])
        trainer = Training(task, config.optim, config.loop, gpu=gpu)
        trainer.make_state()
        live.peak = live.bytes
        trainer.step(lambda: batch_of(config, classes, task.model), 1)
        lasting, training, live.peak = live.bytes, live.peak, live.bytes
        with torch.no_grad(), autocast(config.loop.precision):
            evaluate(task.model.eval(), config, classes, image)
        return Held(lasting, training, live.peak, stored_bytes(config, task.model))


@contextmanager
def samples_of(data: Fingerprint) -> Iterator[None]:
    """Inside, a sample of the labels (`draw_labels`) holds those of as many images as there are, all different; and an
    image has as many segments as labels, all kept, each matched with a query."""

    def draw(targets: Tensor, negatives: int | None) -> LabelSample | None:
        images, labels = targets.shape
        wanted = labels if negatives is None else negatives + math.ceil(images * data.labels_mean)
        return None if wanted >= labels else LabelSample(torch.arange(wanted), torch.ones(wanted))

    with ExitStack() as stack:
        for task in ("stage1_multilabel.task", "stage2_segmentation.task"):
            stack.enter_context(patch(f"{task}.draw_labels", draw))
        stack.enter_context(imagined_segments(max(1, math.ceil(data.labels_mean))))
        yield


def without_numbers(config: Config) -> Config:
    """The same network without its weight file; one that learns objects learns labels, whose segments are imagined."""
    if isinstance(config, Stage2Config) and objects_learnt(config):
        config = replace(config, host=replace(config.host, options={**config.host.options, "target": "labels"}))
    backbone = replace(config.backbone, weights=None, frozen=config.backbone.is_frozen)
    return replace(config, backbone=backbone)  # type: ignore[arg-type]  # SwinConfig stays what it is


def objects_learnt(config: Stage2Config) -> bool:
    return learns_objects(config.host.kind, config.host.options)


def empty_task(config: Config, classes: int) -> Task:
    """What is trained, on the device "meta". Raises UserError for a network that there is not."""
    with torch.device("meta"):
        return task_of(without_numbers(config), classes, ImaginedTask)


def task_of(config: Config, classes: int, segment: type[SegmentTask] = SegmentTask) -> Task:
    """segment: a class of its own for segmentation without numbers."""
    if isinstance(config, Stage1Config):
        size = config.augment.image_size
        return MultiLabelTask(
            build_classifier(config.backbone, config.head, num_classes=classes, image_size=size), config.loss
        )  # fmt: skip
    ranks = scale_length(config, classes)
    return segment(
        build_segmentation(config, classes), Given(ranks, joint=config.source.train == "joint"), classes,
        missed=config.source, labels=config.labels, loss_stride=config.loss.stride,
    )  # fmt: skip


@dataclass(frozen=True)
class Given:
    """A source that gives κ ranks to every image.   joint: lets the network rank."""

    kappa: int
    joint: bool
    fingerprint: str = ""

    def __call__(
        self, image_ids: Sequence[str], mask: Tensor | None, image: Tensor | None = None
    ) -> Ranking | OwnRanking:
        return OwnRanking(self.kappa) if self.joint else best(self.kappa)(len(image_ids))


class ImaginedTask(SegmentTask):
    """Segmentation whose loss is told how cells become pixels: the weights of that are numbers."""

    def segmentation(self, seen: Seen, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if isinstance(self.model.host, LearnsSegments):
            return super().segmentation(seen, batch)
        assert batch.mask is not None
        ranking = self.ranking_for(seen, batch)
        prediction = self.model.segment(replace(seen, progress=batch.progress), ranking)
        assert not isinstance(prediction, QueryPrediction)
        loss = self.loss_of(prediction.rank_logits, self.model.cell, batch.mask, ranking)
        for extra in prediction.auxiliary:
            loss = loss + extra.weight * self.loss_of(extra.rank_logits, extra.cell, batch.mask, ranking)
        return loss, {}

    def loss_of(self, rank_logits: Tensor, cell: int, mask: Tensor, ranking: Ranking) -> Tensor:
        """`segmentation_loss`.   cell: side of a cell of the logits in pixels."""
        half = self.loss_stride // 2
        mask = mask[:, half :: self.loss_stride, half :: self.loss_stride]
        target = to_rank_space(mask, ranking, self.num_classes)
        rows, columns = (
            axis(cells, cell, pixels, self.loss_stride)
            for cells, pixels in zip(rank_logits.shape[2:], mask.shape[1:], strict=True)
        )
        total: Tensor = UpsampledCrossEntropy.apply(rank_logits.float(), target, rows, columns, None)[0]
        return total / target.numel()


def axis(cells: int, cell: int, pixels: int, stride: int) -> Axis:
    with unset_fake_temporarily():
        return Axis.of(axis_weights(cells, cell, pixels, stride=stride), torch.zeros(()))


class Training:
    """The step of kappaseg_core.loop, with nothing read from a tensor."""

    def __init__(self, task: Task, optim: OptimConfig, loop: LoopConfig, *, gpu: bool) -> None:
        self.task, self.loop, self.device = task.train(), loop, next(task.parameters()).device.type
        optim = replace(optim, selected_rows=False)  # which rows are selected are values; with all of them it is more
        self.optimizer = build_optimizer(task.parameter_groups(optim), optim)
        for group in self.optimizer.param_groups:
            group["foreach"] = gpu  # all parameters at once, which takes room for their sum
        self.average = ModelEmaV3(task.model, decay=loop.ema, use_warmup=True) if loop.ema else None

    def make_state(self) -> None:
        """What the optimiser remembers, which its first step makes."""
        for parameter in self.task.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def micro_batches(self) -> int:
        """Two stand for more: the second one and all others find the gradients of the first."""
        return min(2, self.loop.accumulate)

    def step(self, batch: Callable[[], Batch], number: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(self.micro_batches):
            with autocast(self.loop.precision, self.device):
                loss, _ = self.task(batch())
            loss.backward()
        nn.utils.clip_grad_norm_([p for p in self.task.parameters() if p.grad is not None], 1.0)
        self.optimizer.step()
        if self.average:
            self.average.update(self.task.model, step=number)


def autocast(precision: str, device: str = "cpu") -> AbstractContextManager[object]:
    """Half precision of either kind is bf16 here: fp16 takes the same room, and the CPU lacks some of it."""
    return nullcontext() if precision == "fp32" else torch.autocast(device, torch.bfloat16)


def batch_of(config: Config, classes: int, model: Classifier | SegmentationModel) -> Batch:
    """A micro-batch of one worker, behind the warm-up of a label branch, in which the host does nothing."""
    images, side = config.loop.batch_size // config.loop.accumulate, side_of(config)
    batch = Batch(("",) * images, image=torch.rand(images, 3, side, side))
    if stores(config):
        shapes = ((shape.channels, -(-side // shape.stride)) for shape in model.backbone.shapes)
        maps = tuple(torch.rand(images, channels, cells, cells) for channels, cells in shapes)
        batch = Batch(batch.image_id, features=maps)
    if isinstance(config, Stage1Config):
        return replace(batch, labels=torch.zeros(images, classes))
    mask = torch.zeros(images, side, side, dtype=torch.int64)
    return replace(batch, mask=mask, progress=config.labels.warm_up)


def side_of(config: Config) -> int:
    """Pixels a side of the images trained on."""
    return config.augment.image_size if isinstance(config, Stage1Config) else config.augment.crop


def stores(config: Config) -> bool:
    """Whether features are computed once and kept in a file."""
    return bool(config.loop.cached_views) and config.backbone.is_frozen


def stored_bytes(config: Config, model: Classifier | SegmentationModel) -> int:
    """Of the views of an image: features f16 and label map i16, or label map and instance map i32. (Labels, in the
    place of a map, are few.)"""
    if not stores(config):
        return 0
    side, trunk = side_of(config), model.backbone
    a_pixel = 0 if isinstance(config, Stage1Config) else 8 if objects_learnt(config) else 2
    features = sum(shape.channels * (-(-side // shape.stride)) ** 2 for shape in trunk.shapes)
    return config.loop.cached_views * (2 * features + a_pixel * side**2)


def evaluate(model: nn.Module, config: Config, classes: int, image: tuple[int, int]) -> None:
    """The fullest parts of what has no gradient: a batch of the classifier, or an image in windows; features."""
    assert isinstance(model, Classifier | SegmentationModel)
    if stores(config):
        model.backbone(torch.empty(GROUP, 3, side_of(config), side_of(config)))
    if isinstance(config, Stage1Config):
        model(torch.empty(BATCH, 3, side_of(config), side_of(config)))
        return
    assert isinstance(model, SegmentationModel)
    (height, width), windows = window_of(config, image), windows_of(config, image)
    ranks, kept = best(ranks_of(config.source.at_test, config.source.kept(classes, at_test=True), classes)), []
    for start in range(0, windows, WINDOWS_AT_ONCE):
        images = min(WINDOWS_AT_ONCE, windows - start)
        found = model.segment(model.look(torch.empty(images, 3, height, width)), ranks(images))
        kept.append((found.mask_logits if isinstance(found, QueryPrediction) else found.rank_logits).float())
    # what cells give along one axis, of all windows at once (`Strips`)
    kept += [torch.empty(len(logits), logits.shape[2], width, logits.shape[1]) for logits in kept]


def view_of(config: Stage2Config, image: tuple[int, int]) -> tuple[int, int]:
    """Height and width that an image is segmented at, at the largest scale."""
    plan = config.inference
    height, width = scaled_size(image, plan.short_side) if plan.short_side else image
    return round(height * max(plan.scales)), round(width * max(plan.scales))


def window_of(config: Stage2Config, image: tuple[int, int]) -> tuple[int, int]:
    height, width = view_of(config, image)
    side = config.inference.window if config.inference.mode == "slide" else max(height, width)
    return min(side, height), min(side, width)


def windows_of(config: Stage2Config, image: tuple[int, int]) -> int:
    plan = config.inference
    if plan.mode == "whole":
        return 1
    return len(list(corners(*view_of(config, image), plan.window, plan.stride)))


def best(ranks: int) -> Callable[[int], Ranking]:
    """Rankings of so many images."""

    def ranking(images: int) -> Ranking:
        labels = torch.arange(ranks).expand(images, -1)
        return Ranking(labels, torch.ones(labels.shape), torch.ones_like(labels, dtype=torch.bool))

    return ranking
