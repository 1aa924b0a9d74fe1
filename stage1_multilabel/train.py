"""Training a classifier: `train_classifier(config)` gives a run directory under OUT."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kappaseg_core.checkpoint import Summary, nothing_left_of_a_mistake, start_from, start_run
from kappaseg_core.feeding import Examples, batches, lost_workers_told
from kappaseg_core.files import no_empty_folders
from kappaseg_core.label_counts import folds_of, label_counts
from kappaseg_core.loop import fit
from kappaseg_core.placement import place
from kappaseg_core.scenes import open_scenes
from kappaseg_core.seeding import seed_of
from kappaseg_core.structures import Batch, SceneSet
from kappaseg_core.views import selected, training_bank
from stage1_multilabel.augment import TrainExamples
from stage1_multilabel.classifier import Classifier, build_classifier
from stage1_multilabel.config import Stage1Config
from stage1_multilabel.quality import SELECTION_METRIC, ranking_quality
from stage1_multilabel.scoring import scores_of
from stage1_multilabel.task import MultiLabelTask


def train_classifier(config: Stage1Config, folder: Path | None = None) -> Summary:
    """Train, or finish training, the classifier of `config` in `folder` (default OUT/stage1).

    With `config.fold` = (i, n) the images of fold i are left out, and the classifier is evaluated on them.
    """
    started = time.perf_counter()
    here = place(config.loop, to_train=True)
    train, val = open_scenes(config.data, config.data.train), open_scenes(config.data, config.data.val)
    kept, test, test_rows = split_for(config, train, val)

    torch.manual_seed(seed_of(config.loop.seed, "init"))
    model = build_classifier(
        config.backbone, config.head, num_classes=len(train.class_names), image_size=config.augment.image_size
    )
    start_from(model, config, train.class_names)
    run = start_run(
        folder or Path(config.out) / "stage1", model="stage1_multilabel.classifier", config=config,
        scenes=(train, val), here=here,
    )  # fmt: skip
    if run.is_complete:
        return run.summary()

    with nothing_left_of_a_mistake(run), no_empty_folders(Path(config.out) / "features"), lost_workers_told():
        truth = label_counts(train, kept)
        if config.init is None:
            model.head.set_prior(torch.from_numpy((truth > 0).mean(0)))
        examples: Examples = TrainExamples(train, config.augment, model.backbone.mean, model.backbone.std)
        if config.loop.cached_views and config.backbone.is_frozen:
            examples = training_bank(config, "labels", examples, train, model.backbone, here)
        if config.fold:
            examples = selected(examples, kept)

        def feed(first_step: int) -> Iterator[Batch]:
            return batches(examples, "labels", config.loop, here, first_step=first_step)

        test_truth = label_counts(test, test_rows)

        def evaluate(network: nn.Module) -> dict[str, float]:
            assert isinstance(network, Classifier)
            scores = scores_of(network, test, test_rows, config.augment.image_size, here)
            return ranking_quality(scores, test_truth, truth, shortlist=config.head.shortlist)

        return fit(
            MultiLabelTask(model, config.loss), feed, evaluate, optim=config.optim, loop=config.loop, run=run,
            place=here, metric=SELECTION_METRIC, spent_seconds=time.perf_counter() - started,
        )  # fmt: skip


def split_for(config: Stage1Config, train: SceneSet, val: SceneSet) -> tuple[list[int], SceneSet, list[int]]:
    """Training rows, and the scene set and rows to evaluate on."""
    if config.fold is None:
        return list(range(len(train))), val, list(range(len(val)))
    mine, folds = config.fold
    fold = folds_of(train.image_ids, folds)
    return np.flatnonzero(fold != mine).tolist(), train, np.flatnonzero(fold == mine).tolist()
