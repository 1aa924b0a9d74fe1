"""The whole of stage two on synthetic scenes: train, interrupt, go on, load, evaluate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kappaseg_core.config import BackboneConfig, DataConfig, LoopConfig, OptimConfig
from kappaseg_core.errors import UserError
from kappaseg_core.loop import Trainer
from kappaseg_core.placement import Placement
from kappaseg_core.ranking import IGNORE, Ranking, top_kappa
from kappaseg_core.scenes import open_scenes
from kappaseg_core.structures import Batch
from label_cache import CacheKey, CacheWriter, class_hash
from stage2_segmentation.config import (
    AugmentConfig,
    HostConfig,
    InferenceConfig,
    LabelsConfig,
    SourceConfig,
    Stage2Config,
)
from stage2_segmentation.evaluate import evaluate_model, load_segmentation, open_test_scenes
from stage2_segmentation.losses import segmentation_loss
from stage2_segmentation.model import build_segmentation
from stage2_segmentation.sources.complete import Complete
from stage2_segmentation.task import SegmentTask
from stage2_segmentation.train import source_for, train_segmentation

K, STEPS = 6, 5
DATA = DataConfig(kind="synthetic", options={"classes": K, "train": 4, "val": 2, "size": 32})
SMALL_CNN = BackboneConfig(kind="small_cnn", name="8")


def config_for(out: Path, source: SourceConfig, *, views: int = 0, frozen: bool = False) -> Stage2Config:
    return Stage2Config(
        data=DATA,
        backbone=replace(SMALL_CNN, frozen=frozen),
        host=HostConfig(options={"heads": 2, "depth": 1}),
        source=source,
        augment=AugmentConfig(short_side=32, crop=24),
        inference=InferenceConfig(short_side=None),
        optim=OptimConfig(kind="sgd", lr=0.05, schedule="poly"),
        loop=LoopConfig(
            steps=STEPS, batch_size=2, save_every=2, log_every=2, device="cpu", seed=1, cached_views=views
        ),
        out=str(out),
    )  # fmt: skip


def write_cache(folder: Path) -> None:
    """Random rankings of four labels for all images of both splits."""
    random = np.random.default_rng(0)
    splits = {name: open_scenes(DATA, name) for name in ("train", "val")}
    names = splits["train"].class_names
    prints = {name: scenes.fingerprint() for name, scenes in splits.items()}
    key = CacheKey(dataset=prints, classes=class_hash(names), model="m", preprocess="p", num_classes=K, k=4)
    writer = CacheWriter(folder, key, names)
    for name, scenes in splits.items():
        ranking = top_kappa(torch.from_numpy(random.random((len(scenes), K), np.float32)), 4)
        writer.write_part(
            name, 0, ids=scenes.image_ids, labels=ranking.labels, scores=ranking.scores, source="held-out"
        )  # fmt: skip
    writer.commit({name: 1 for name in splits})


class Killed(Exception):
    pass


def train_until(step: int, config: Stage2Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the run and stop it before the given step."""
    whole = Trainer.train_step

    def train_step(self: Trainer, stream: object) -> None:
        if self.step == step:
            raise Killed
        whole(self, stream)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        with pytest.raises(Killed):
            train_segmentation(config)


@pytest.mark.parametrize(
    "source",
    [
        SourceConfig("complete"),
        SourceConfig("oracle"),
        SourceConfig("complete", test="oracle"),
        SourceConfig("cache", kappa=3, test_kappa=4, missed="force"),
    ],
    ids=lambda source: f"{source.train}-{source.at_test}",
)
def test_a_run_loads_and_measures_as_it_ended(tmp_path: Path, source: SourceConfig) -> None:
    """The summary's numbers are those of the network that the run directory rebuilds."""
    write_cache(tmp_path / "labels")
    config = config_for(tmp_path, source)
    summary = train_segmentation(config)
    assert summary.steps == STEPS
    model, loaded, class_names = load_segmentation(tmp_path / config.run_name)
    assert loaded == config
    scenes = open_test_scenes(loaded, class_names)
    again = evaluate_model(
        model, scenes, source_for(loaded, scenes, at_test=True), loaded.inference, Placement()
    )  # fmt: skip
    assert again.numbers() == summary.metrics
    assert again.mIoU <= again.class_coverage
    expected = {"oracle": None, "complete": K, "cache": 4}[source.at_test]
    assert expected is None or again.mean_kappa == expected


@pytest.mark.parametrize(
    ("views", "source"), [(0, "complete"), (0, "oracle"), (2, "cache")], ids=["complete", "oracle", "cache-views"]
)
@pytest.mark.parametrize("step", [1, 3])
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: int, source: str, step: int
) -> None:
    """Bitwise, before and after the first saved moment (step 2)."""
    folders = tmp_path / "whole", tmp_path / "killed"
    configs = [config_for(f, SourceConfig(source, kappa=3), views=views, frozen=views > 0) for f in folders]
    for folder in folders:
        write_cache(folder / "labels")
    whole = train_segmentation(configs[0])
    train_until(step, configs[1], monkeypatch)
    killed = train_segmentation(configs[1])
    assert killed.metrics == whole.metrics
    weights = [load_file(folder / f"stage2-{source}" / "weights.safetensors") for folder in folders]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    logs = [(folder / f"stage2-{source}" / "metrics.jsonl").read_bytes() for folder in folders]
    assert logs[0] == logs[1]


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    config = config_for(tmp_path, SourceConfig("oracle"))
    config = replace(config, loop=replace(config.loop, steps=40, log_every=10))
    train_segmentation(config)
    lines = (tmp_path / config.run_name / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]
    assert losses[-1] < 0.9 * losses[0]


def test_a_run_is_tied_to_the_rows_of_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cache(tmp_path / "labels")
    config = config_for(tmp_path, SourceConfig("cache", kappa=3))
    train_until(3, config, monkeypatch)
    manifest = tmp_path / "labels" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")  # another file, as if ranked anew
    with pytest.raises(UserError, match=r"inputs\.rankings is"):
        train_segmentation(config)


def test_a_frozen_backbone_stays_as_it_was(tmp_path: Path) -> None:
    """Weights and batch-norm statistics, with cached views and without."""
    for views in (0, 2):
        config = config_for(tmp_path / str(views), SourceConfig("complete"), views=views, frozen=True)
        summary = train_segmentation(config)
        network, _, _ = load_segmentation(Path(summary.run))
        assert summary.trained_parameters == sum(p.numel() for p in network.host.parameters())
        fresh = build_segmentation(config, K).backbone
        trained, untrained = network.backbone.state_dict(), fresh.state_dict()
        statistics = [name for name in trained if "running" in name]
        assert statistics
        assert all(torch.equal(trained[name], untrained[name]) for name in statistics)


def test_forced_labels_take_part_in_the_loss() -> None:
    """A cached ranking without the crop's label: ignored as published, or put at the last rank."""

    class Cached(Complete):
        def __call__(self, image_ids: object, mask: object) -> Ranking:
            return top_kappa(torch.tensor([[0.9, 0.8, 0.1, 0.1, 0.1, 0.1]]), 2)

    torch.manual_seed(0)
    model = build_segmentation(Stage2Config(backbone=SMALL_CNN, source=SourceConfig(kappa=2)), K)
    batch = Batch(("i",), image=torch.zeros(1, 3, 16, 16), mask=torch.full((1, 16, 16), 4))
    batch.mask[:, 8:] = IGNORE  # type: ignore[index]
    cases: list[tuple[Literal["ignore", "force"], list[int], float]] = [("ignore", [0, 1], 0), ("force", [0, 4], 1)]
    for missed, labels, kept in cases:
        given = SourceConfig(missed=missed)
        task = SegmentTask(model, Cached(K), K, missed=given, labels=LabelsConfig(), loss_stride=1).eval()
        ranking = task.ranking_for(model.look(batch.image), batch)  # type: ignore[arg-type]
        assert ranking.labels.tolist() == [labels]
        loss, figures = task(batch)
        assert figures["kept"].item() == kept
        expected = segmentation_loss(model(batch.image, ranking).rank_logits, batch.mask, ranking, K, cell=8)[0]  # type: ignore[arg-type]
        assert torch.equal(loss, expected)
        assert (loss.item() > 0) is (missed == "force")
