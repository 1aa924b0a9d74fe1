"""Training a segmentation network: `train_segmentation(config)` gives a run directory under OUT."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import nn

from kappaseg_core.checkpoint import (
    RunDirectory,
    Summary,
    nothing_left_of_a_mistake,
    run_fingerprint,
    start_from,
    start_run,
)
from kappaseg_core.errors import UserError
from kappaseg_core.feeding import Examples, batches, lost_workers_told
from kappaseg_core.files import no_empty_folders
from kappaseg_core.label_counts import label_counts
from kappaseg_core.loop import fit
from kappaseg_core.placement import place
from kappaseg_core.scenes import open_scenes, things_of
from kappaseg_core.seeding import seed_of
from kappaseg_core.structures import Batch, SceneSet
from kappaseg_core.views import training_bank
from stage2_segmentation.augment import Target, TrainExamples
from stage2_segmentation.branches import Branch
from stage2_segmentation.config import AugmentConfig, InferenceConfig, Stage2Config
from stage2_segmentation.evaluate import evaluate_model
from stage2_segmentation.model import SegmentationModel, build_segmentation
from stage2_segmentation.objects import refuse_several_views
from stage2_segmentation.sources import Source, SourceInputs, build_source
from stage2_segmentation.task import SegmentTask


def train_segmentation(config: Stage2Config, folder: Path | None = None) -> Summary:
    """Train, or finish training, the network of `config` in `folder` (default OUT/stage2-NAME)."""
    started = time.perf_counter()
    here = place(config.loop, to_train=True)
    train, val = open_scenes(config.data, config.data.train), open_scenes(config.data, config.data.val)
    num_classes = len(train.class_names)
    train_source = source_for(config, train, at_test=False)
    test_source = source_for(config, val, at_test=True)

    torch.manual_seed(seed_of(config.loop.seed, "init"))
    model = build_segmentation(config, num_classes)
    things = learnt_things(model, config.inference, train, val)
    start_from(model, config, train.class_names)
    run = start_run(
        folder or Path(config.out) / config.run_name, model="stage2_segmentation.model", config=config,
        scenes=(train, val), here=here, things=things, rankings=train_source.fingerprint,
    )  # fmt: skip
    if run.is_complete:
        return run.summary()

    with nothing_left_of_a_mistake(run), no_empty_folders(Path(config.out) / "features"), lost_workers_told():
        if model.branch is not None and config.labels.prior and config.init is None and not run.has_progress:
            cast(Branch, model.branch).set_prior(torch.from_numpy((label_counts(train) > 0).mean(0)))
        crops = training_crops(model, train, config.augment)
        examples: Examples = crops
        if config.loop.cached_views and config.backbone.is_frozen:
            examples = training_bank(config, crops.target, crops, train, model.backbone, here)

        def feed(first_step: int) -> Iterator[Batch]:
            return batches(examples, crops.target, config.loop, here, first_step=first_step)

        def evaluate(network: nn.Module) -> dict[str, float]:
            assert isinstance(network, SegmentationModel)
            return evaluate_model(network, val, test_source, config.inference, here).numbers()

        task = SegmentTask(
            model, train_source, num_classes, missed=config.source, labels=config.labels,
            loss_stride=config.loss.stride, things=None if things is None else torch.tensor(things),
        )  # fmt: skip
        return fit(
            task, feed, evaluate, optim=config.optim, loop=config.loop, run=run, place=here, metric="mIoU",
            spent_seconds=time.perf_counter() - started,
        )  # fmt: skip


def learnt_things(model: SegmentationModel, inference: InferenceConfig, *splits: SceneSet) -> tuple[bool, ...] | None:
    """Which labels are things, for a network that learns objects; None for another.

    Raises UserError where a split tells no objects apart, or inference makes no segments.
    """
    if not model.learns_objects:
        return None
    refuse_several_views(inference)
    return things_to_learn(*splits)


def things_to_learn(*splits: SceneSet) -> tuple[bool, ...]:
    """Which labels are things in the splits of one data set. Raises UserError where one tells no objects apart."""
    try:
        (things,) = {things_of(scenes) for scenes in splits}
    except UserError as error:
        raise UserError(f"host.options.target = objects, but {error}; or set host.options.target labels") from None
    return things


def training_crops(model: SegmentationModel, scenes: SceneSet, augment: AugmentConfig) -> TrainExamples:
    """The crops that a network is trained on, with objects where it learns them."""
    target: Target = "objects" if model.learns_objects else "mask"
    return TrainExamples(scenes, augment, model.backbone.mean, model.backbone.std, target=target)


def source_for(config: Stage2Config, scenes: SceneSet, *, at_test: bool) -> Source:
    """The ranking source of training or of evaluation, for one split."""
    wanted = config.source
    inputs = SourceInputs(
        kappa=wanted.kept(len(scenes.class_names), at_test=at_test),
        class_names=scenes.class_names,
        splits={scenes.split: scenes.fingerprint()},
        cache=Path(wanted.cache or Path(config.out) / "labels"),
        model=None if at_test or wanted.cache else classifier_beside(Path(config.out)),
        setting="source.test_kappa" if at_test and wanted.test_kappa else "source.kappa",
        url=wanted.url,
        service_cache=wanted.service_cache,
    )
    return build_source(wanted.at_test if at_test else wanted.train, inputs)


def classifier_beside(out: Path) -> str | None:
    """Fingerprint of the finished classifier in OUT/stage1, which the cache in OUT/labels has to be from."""
    run = out / "stage1"
    return run_fingerprint(run) if RunDirectory(run).is_complete else None
