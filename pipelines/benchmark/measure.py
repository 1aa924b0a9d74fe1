"""One network on its validation split, measured in every way that the report shows, in one pass.

    measurement.json    numbers of the split, of its labels and of the ranks
    images.npz          pixels right, predicted and true of every label in every image: what mIoU is resampled from
    gallery/000.png …   label maps of the first images, label ids in 16 bits

Legend: K all labels.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kappaseg_core.checkpoint import read_record, run_fingerprint
from kappaseg_core.config import to_plain
from kappaseg_core.errors import UserError
from kappaseg_core.files import new_folder, write_text
from kappaseg_core.label_counts import label_counts
from kappaseg_core.panoptic_quality import PanopticSums
from kappaseg_core.ranking import presence
from kappaseg_core.scenes import open_scenes, things_of
from kappaseg_core.segments import scene_segments
from pipelines.benchmark.presence import Presence, presence_quality
from pipelines.benchmark.records import finite
from pipelines.benchmark.tally import Tally, histogram
from pipelines.evaluate import Opened, opened
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.evaluate import segmented_scenes
from stage2_segmentation.model import SegmentationModel

MEASUREMENT = "measurement.json"
RANKS_SHOWN = 12


def measure_run(run: Path, folder: Path, *, settings: Sequence[tuple[str, str]] = (), gallery: int = 6) -> None:
    """Measure a finished stage-two run with its own evaluation settings, or with some of them changed.

    settings: as `kappaseg evaluate` takes them.   gallery: how many label maps are kept.
    An earlier measurement in `folder` is replaced. Raises UserError where it holds something else, and in every case
    in which `kappaseg evaluate` does.
    """
    started = time.perf_counter()
    found = opened(run, settings)
    scores = Presence.of_run(found.model, found.config, len(found.class_names), found.here)
    make_room(folder)
    with new_folder(folder) as made:
        tally = passed(found, scores, maps=made / "gallery", shown=gallery)
        record = {
            **identity(run, found, settings),
            "network": network(found.model, found.training),
            **tally.numbers(),
            "presence": scores.of,
            **presence_quality(tally.scores, tally.truth, scores.ranks),
            **training_labels(found.config),
            "rank_scale": rank_scale(found.model, found.training),
            **examples(tally, found.scenes.image_ids, gallery),
            "seconds": round(time.perf_counter() - started, 2),
        }
        write_text(made / MEASUREMENT, json.dumps(finite(record), ensure_ascii=False) + "\n")
        np.savez_compressed(made / "images.npz", allow_pickle=False, **tally.sparse(found.scenes.image_ids))


def make_room(folder: Path) -> None:
    """Remove an earlier measurement. Raises UserError for a folder that holds something else."""
    if not folder.exists():
        return
    if not (folder / MEASUREMENT).exists():
        raise UserError(f"{folder} holds no {MEASUREMENT}, so it is no measurement to replace; name another folder")
    shutil.rmtree(folder)


def passed(run: Opened, scores: Presence, *, maps: Path, shown: int) -> Tally:
    """The pass over the split; the label maps of the first images become pictures in `maps`."""
    objects = PanopticSums(things_of(run.scenes)) if run.model.learns_objects else None
    tally = Tally(len(run.scenes), len(run.class_names), objects)
    maps.mkdir()
    for index, scene, found in segmented_scenes(run.model, run.scenes, run.source, run.config.inference, run.here):
        mask = torch.from_numpy(scene.mask).long()
        present = presence(mask[None], tally.num_classes)[0]
        tally.add(
            index, mask=mask, label_map=found.label_map, ranking=found.ranking, scores=scores(scene, present, found)
        )
        if objects is not None and found.segments is not None:
            objects.update(found.segments, scene_segments(scene, objects.things))
        if index < shown:
            Image.fromarray(found.label_map.numpy().astype(np.uint16)).save(maps / map_name(index))
    return tally


def map_name(index: int) -> str:
    return f"{index:03d}.png"


def identity(run: Path, found: Opened, settings: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What was measured, and how. kappa: None for a source that gives all labels it knows of."""
    training, config = found.training, found.config
    return {
        "run": run.name, "fingerprint": run_fingerprint(run), "inputs": read_record(run)["inputs"],
        "settings": {name: text for name, text in settings if name not in ("source.cache", "data.root")},
        "split": config.data.val, "source": {"train": training.source.train, "test": config.source.at_test},
        "kappa": None if found.all_ranks else found.kappa,
        "inference": to_plain(config.inference), "class_names": list(found.class_names),
    }  # fmt: skip


def network(model: SegmentationModel, training: Stage2Config) -> dict[str, Any]:
    """What the network is made of, as far as comparisons depend on it."""
    scale = getattr(model.host, "rank_scale", None)
    return {
        "backbone": training.backbone.name, "host": training.host.kind, "labels": training.labels.head,
        "rank_scale": None if scale is None else scale.kind, "missed": training.source.missed,
        "label_settings": to_plain(training.labels), "steps": training.loop.steps,
    }  # fmt: skip


def training_labels(config: Stage2Config) -> dict[str, Any]:
    """Images of the training split that hold each label [K], and how many labels its images have."""
    present = label_counts(open_scenes(config.data, config.data.train)) > 0
    return {"train_images": present.sum(0).tolist(), "train_labels_per_image": histogram(present.sum(1))}


def rank_scale(model: SegmentationModel, training: Stage2Config) -> dict[str, Any] | None:
    """What the host has learnt to multiply each rank with (Fig. 7, He et al. 2022); None where there are no ranks: one
    factor for all of them, or a network trained on labels in order of id."""
    learnt = getattr(model.host, "rank_scale", None)
    if learnt is None or len(learnt.weight) < 2 or training.source.train in ("complete", "oracle"):
        return None
    return {"kind": learnt.kind, "weight": learnt.weight.tolist()}


def examples(tally: Tally, image_ids: Sequence[str], count: int) -> dict[str, Any]:
    """Ranked labels and label maps of the first images."""
    shown = list(enumerate(image_ids[:count]))
    return {
        "ranked": [{"image_id": image_id, **tally.ranked(index, RANKS_SHOWN)} for index, image_id in shown],
        "gallery": [{"image_id": image_id, "file": f"gallery/{map_name(index)}"} for index, image_id in shown],
    }
