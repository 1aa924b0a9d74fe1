"""From a classifier to a label cache: every image's labels, most probable first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kappaseg_core.checkpoint import IMPORTED, load_model, read_record, run_fingerprint
from kappaseg_core.config import LoopConfig, build, fingerprint
from kappaseg_core.errors import UserError
from kappaseg_core.files import no_empty_folders
from kappaseg_core.label_counts import folds_of, label_counts
from kappaseg_core.placement import Placement, place
from kappaseg_core.progress import say
from kappaseg_core.ranking import top_kappa
from kappaseg_core.scenes import open_scenes
from kappaseg_core.structures import SceneSet
from label_cache import CacheKey, CacheWriter, LabelCache, class_difference, class_hash
from stage1_multilabel.classifier import Classifier
from stage1_multilabel.config import RankConfig, Stage1Config
from stage1_multilabel.scoring import scores_of
from stage1_multilabel.train import train_classifier


@dataclass(frozen=True)
class Ranker:
    """A finished classifier ready to rank, and which images it did not see in training."""

    run: Path
    config: Stage1Config
    class_names: tuple[str, ...]
    inputs: dict[str, str]

    @classmethod
    def of(cls, run: Path) -> Ranker:
        record = read_record(run)
        if record["model"] != "stage1_multilabel.classifier":
            raise UserError(f"{run} holds no classifier; give the folder that run-stage1 wrote (OUT/stage1)")
        config = build(Stage1Config, record["config"], source=str(run / "run.yaml"))
        return cls(run, config, tuple(record["class_names"]), record["inputs"])

    def load(self, device: torch.device) -> Classifier:
        model, _ = load_model(self.run, device)
        assert isinstance(model, Classifier)
        return model.to(memory_format=torch.channels_last)


def rank_images(config: RankConfig) -> LabelCache:
    """Write, or finish writing, the label cache of `config`; a complete one of the same inputs is left as it is.

    Training images are ranked by the classifier itself ("in-sample") or, with folds, each by the classifier that did
    not see it ("out-of-fold", trained here as needed in OUT/folds); the validation images by the classifier itself
    ("held-out").
    """
    here = place(LoopConfig(device=config.device, precision=config.precision))
    ranker = Ranker.of(Path(config.classifier or Path(config.out) / "stage1"))
    splits = {name: open_scenes(config.data, name) for name in (config.data.train, config.data.val)}
    refuse_other_classes(ranker, splits[config.data.train])
    if config.folds:
        refuse_folds(ranker, splits[config.data.train])
    runs = {"": ranker, **fold_rankers(ranker, config)}
    key = cache_key(ranker, runs, splits, config)
    folder = Path(config.cache or Path(config.out) / "labels")
    with no_empty_folders(folder):
        writer = CacheWriter(folder, key, ranker.class_names)
        if not here.agree(writer.is_committed()):
            counts = {
                name: write_split(writer, runs, scenes, config, here, is_train=name == config.data.train)
                for name, scenes in splits.items()
            }
            if here.is_first:
                writer.commit(counts)
            here.wait()
    return LabelCache.open(folder)


def refuse_other_classes(ranker: Ranker, scenes: SceneSet) -> None:
    if difference := class_difference(ranker.class_names, scenes.class_names):
        raise UserError(
            f"classifier {ranker.run} was trained on another class list: {difference}; "
            "rank with a classifier of this data set"
        )


def refuse_folds(ranker: Ranker, scenes: SceneSet) -> None:
    """Raise UserError for a classifier whose settings do not lead to others that have not seen all training images."""
    if IMPORTED in ranker.inputs:
        raise UserError(
            f"classifier {ranker.run} was imported, and its settings train no other like it; rank without --folds, or "
            "train classifiers from it first (run-stage1 with --init)"
        )
    start = ranker.config.init
    while start is not None:
        record = read_record(Path(start))
        if scenes.fingerprint() in record["inputs"].values():
            raise UserError(
                f"classifier {ranker.run} starts from {start}, which has seen all training images, so that no ranking "
                "would be out of fold; rank without --folds"
            )
        start = record["config"].get("init")


def fold_rankers(ranker: Ranker, config: RankConfig) -> dict[str, Ranker]:
    """The classifiers of the folds, trained where they are not there yet: fold number → ranker."""
    found = {}
    for fold in range(config.folds):
        folder = Path(config.out) / "folds" / f"{fold}-of-{config.folds}"
        say(f"fold {fold + 1} of {config.folds}: {folder}")
        train_classifier(replace(ranker.config, fold=(fold, config.folds), data=config.data, out=config.out), folder)
        found[str(fold)] = Ranker.of(folder)
    return found


def cache_key(ranker: Ranker, runs: dict[str, Ranker], splits: dict[str, SceneSet], config: RankConfig) -> CacheKey:
    """Everything that decides what stands in the cache."""
    num_classes = len(ranker.class_names)
    prints = [run_fingerprint(run.run) for run in runs.values()]
    look = {"image_size": ranker.config.augment.image_size, "interpolation": "bilinear, anti-aliased",
            "precision": config.precision, "part_images": config.part_images}  # fmt: skip
    return CacheKey(
        dataset={name: scenes.fingerprint() for name, scenes in splits.items()},
        classes=class_hash(ranker.class_names), model=fingerprint(prints) if config.folds else prints[0],
        preprocess=fingerprint(look), score_kind="sigmoid", num_classes=num_classes,
        k=min(config.kappa, num_classes), folds=config.folds,
    )  # fmt: skip


def write_split(
    writer: CacheWriter,
    runs: dict[str, Ranker],
    scenes: SceneSet,
    config: RankConfig,
    here: Placement,
    *,
    is_train: bool,
) -> int:
    """Write the missing parts of one split, rows in order of image id; gives the number of parts.

    All workers score, the first one writes.
    """
    order = sorted(range(len(scenes)), key=scenes.image_ids.__getitem__)
    parts = [order[start : start + config.part_images] for start in range(0, len(order), config.part_images)]
    fold = folds_of(scenes.image_ids, config.folds) if config.folds and is_train else None
    source = "held-out" if not is_train else "in-sample" if fold is None else "out-of-fold"
    models: dict[str, Classifier] = {}
    for index, rows in enumerate(parts):
        ids = [scenes.image_ids[row] for row in rows]
        if here.agree(writer.part_done(scenes.split, index, ids=ids)):
            continue
        scores = torch.zeros(len(rows), len(scenes.class_names))
        for name, places in by_model(rows, fold):
            if name not in models:
                models[name] = runs[name].load(here.device)
            chosen = [rows[place_] for place_ in places]
            size = runs[name].config.augment.image_size
            scores[places] = scores_of(models[name], scenes, chosen, size, here, batch_size=config.batch_size)
        if not here.is_first:
            continue
        ranking = top_kappa(scores, min(config.kappa, scores.shape[1]))
        truth, pixels = ragged(label_counts(scenes, rows))
        writer.write_part(
            scenes.split, index, ids=ids, labels=ranking.labels.numpy(), scores=ranking.scores.numpy(),
            source=source, truth=truth, truth_pixels=pixels,
        )  # fmt: skip
    return len(parts)


def by_model(rows: Sequence[int], fold: NDArray[np.int64] | None) -> Iterator[tuple[str, list[int]]]:
    """Which classifier ranks which of the rows: (name in `runs`, positions in `rows`)."""
    if fold is None:
        yield "", list(range(len(rows)))
        return
    mine = fold[list(rows)]
    for number in np.unique(mine):
        yield str(number), np.flatnonzero(mine == number).tolist()


def ragged(counts: NDArray[np.int32]) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Present labels and their pixels, one array per image."""
    present = [np.flatnonzero(row) for row in counts]
    return present, [row[labels] for row, labels in zip(counts, present, strict=True)]
