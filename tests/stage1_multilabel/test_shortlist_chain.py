"""Training, ranking and asking a classifier whose head samples labels and keeps a short-list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kappaseg_core.config import DataConfig, LabelLossConfig, LoopConfig
from kappaseg_core.label_heads import Shortlisted
from kappaseg_core.placement import Placement
from kappaseg_core.scenes import open_scenes
from stage1_multilabel.config import AugmentConfig, HeadConfig, RankConfig, Stage1Config, SwinConfig
from stage1_multilabel.live import LiveClassifier
from stage1_multilabel.rank import Ranker, rank_images
from stage1_multilabel.train import train_classifier

K, S = 40, 12
DATA = DataConfig(kind="synthetic", options={"classes": K, "train": 6, "val": 3, "size": 32})
SMALL = HeadConfig("fast", width=8, ffn=16, heads=2, decoder_layers=1)


def config_for(out: Path, head: HeadConfig, negatives: int | None = 5, **loop: int) -> Stage1Config:
    return Stage1Config(
        data=DATA, backbone=SwinConfig(kind="small_cnn", name="8"), head=head,
        loss=LabelLossConfig(negatives=negatives),
        augment=AugmentConfig(image_size=32, randaugment_ops=0, cutout=0), out=str(out),
        loop=LoopConfig(**{"steps": 3, "batch_size": 4, "save_every": 1, "log_every": 1, **loop}),
    )  # fmt: skip


@pytest.mark.parametrize(
    "head", [replace(SMALL, shortlist=S, chunk=5), replace(SMALL, shortlist=S, shortlist_by="lse"), SMALL], ids=str
)
def test_a_stored_ranking_is_the_live_one(tmp_path: Path, head: HeadConfig) -> None:
    summary = train_classifier(config_for(tmp_path, head))
    assert ("shortlist_recall" in summary.metrics) == (head.shortlist is not None)
    cache = rank_images(RankConfig(data=DATA, out=str(tmp_path), kappa=K))
    scenes = open_scenes(DATA, "val")
    live = LiveClassifier.of(Ranker.of(tmp_path / "stage1"), K, Placement())
    stored = cache.lookup(list(scenes.image_ids))
    for row in range(len(scenes)):
        found = live(scenes.image(row))
        torch.testing.assert_close(found.scores[0], torch.from_numpy(stored.scores[row]).float(), rtol=2e-3, atol=0)
        assert (found.labels[0].numpy() == stored.labels[row]).mean() > 0.8  # scores alike to a digit may change places
    if isinstance(live.model.head, Shortlisted):
        features = live.model.backbone(live.images.normalise(live.prepared(scenes.image(0))[None]))
        listed = live.model.head.first(features).topk(S).indices[0].tolist()
        assert set(stored.labels[0, :S].tolist()) == set(listed)


def test_the_group_head_keeps_its_groups_in_a_run(tmp_path: Path) -> None:
    head = HeadConfig("group", width=8, ffn=16, heads=2, groups=6, grouping="shuffled", group_seed=4)
    train_classifier(config_for(tmp_path, head, negatives=None))
    ranker = Ranker.of(tmp_path / "stage1")
    assert (ranker.config.head.grouping, ranker.config.head.group_seed) == ("shuffled", 4)
    assert ranker.load(torch.device("cpu")).head.queries.shape == (6, 8)


def test_a_step_in_parts_draws_for_each_part_and_repeats_itself(tmp_path: Path) -> None:
    """Accumulated micro-batches have negatives of their own; the same seed gives the same weights."""
    runs = [train_classifier(config_for(tmp_path / name, SMALL, accumulate=2)) for name in ("one", "same")]
    weights = [(Path(run.run) / "weights.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    other = train_classifier(config_for(tmp_path / "other", SMALL, negatives=6, accumulate=2))
    assert (Path(other.run) / "weights.safetensors").read_bytes() != weights[0]
