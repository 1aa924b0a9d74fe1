"""optim.selected_rows in the whole of stage two: which rows of class tables a training changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kappaseg_core.checkpoint import open_run
from kappaseg_core.config import LoopConfig, OptimConfig, build
from kappaseg_core.errors import UserError
from kappaseg_core.loop import Trainer, fit
from kappaseg_core.placement import Placement
from stage2_segmentation.config import BranchLossConfig, LabelsConfig, SourceConfig, Stage2Config, joint_config
from stage2_segmentation.model import build_segmentation
from stage2_segmentation.sources.oracle import Oracle
from stage2_segmentation.task import SegmentTask
from stage2_segmentation.train import train_segmentation
from tests.stage2_segmentation.test_joint import DECODER, K, batch_of, config_for, task_for

SELECTED = OptimConfig(lr=1e-2, selected_rows=True)
ORACLE: dict[str, Any] = {"source": SourceConfig("oracle"), "labels": LabelsConfig(), "optim": SELECTED}


def trainer_for(out: Path, task: SegmentTask, precision: str = "fp32", **loop: Any) -> Trainer:
    run = open_run(out, model="none", config={}, class_names=(), inputs={})
    settings, here = LoopConfig(steps=9, batch_size=2, log_every=9, **loop), Placement(precision=precision)
    return Trainer(task, SELECTED, settings, run, here, "mIoU")


def oracle_task() -> SegmentTask:
    torch.manual_seed(0)
    model = build_segmentation(config_for(Path("unused"), **ORACLE), K)
    return SegmentTask(model, Oracle(K), K, missed=SourceConfig("oracle"), labels=LabelsConfig(), loss_stride=1)


@pytest.mark.parametrize(("accumulate", "precision"), [(1, "fp32"), (2, "fp32"), (2, "bf16")])
def test_labels_that_no_image_keeps_keep_the_bytes_of_their_rows(
    tmp_path: Path, accumulate: int, precision: str
) -> None:
    """Labels 1, 2, 3 and then 3, 4 are there; label 0, whose row the padding of the second image reads, is not."""
    batch = batch_of()
    assert batch.mask is not None
    batch.mask[0], batch.mask[1], batch.mask[:, :4] = 1, 4, 3
    batch.mask[0, 8:] = 2
    trainer = trainer_for(tmp_path, oracle_task(), precision, accumulate=accumulate, ema=0.5)
    table = trainer.task.model.host.cls_emb
    before = table.detach().clone()  # type: ignore[operator, union-attr]
    for _ in range(2):
        trainer.train_step(iter([batch] * accumulate))
    changed = [False, True, True, True, True, False]
    assert (table != before).any(1).tolist() == changed  # type: ignore[union-attr]
    state = trainer.optimizer.state[table]  # type: ignore[index]
    assert (state["exp_avg"] != 0).any(1).tolist() == changed
    assert state["step"].tolist() == [2.0 * each for each in changed]


def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_segmentation(config_for(tmp_path / "whole", **ORACLE))
    dense = train_segmentation(config_for(tmp_path / "dense", **{**ORACLE, "optim": OptimConfig(lr=1e-2)}))
    step = Trainer.train_step

    def dying(self: Trainer, stream: Any) -> None:
        if self.step == 3:
            raise KeyboardInterrupt
        step(self, stream)

    monkeypatch.setattr(Trainer, "train_step", dying)
    with pytest.raises(KeyboardInterrupt):
        train_segmentation(config_for(tmp_path / "killed", **ORACLE))
    monkeypatch.setattr(Trainer, "train_step", step)
    again = train_segmentation(config_for(tmp_path / "killed", **ORACLE))
    first, second, other = (load_file(Path(s.run) / "weights.safetensors") for s in (whole, again, dense))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["host.cls_emb"], other["host.cls_emb"])


def test_the_rows_of_a_branch_that_samples_labels_are_selected_too(tmp_path: Path) -> None:
    """While it warms up, the host's rows change where the label loss reads them, and those that are kept do not."""
    labels = LabelsConfig("decoder", DECODER, BranchLossConfig(negatives=1), warm_up=0.5)
    torch.manual_seed(0)
    model = build_segmentation(config_for(Path("unused"), labels=labels, optim=SELECTED), K)
    batch = batch_of(progress=0.0)
    batch.mask.fill_(2)  # type: ignore[union-attr]
    trainer = trainer_for(tmp_path, task_for(model, labels=labels))
    tables = model.host.cls_emb, model.branch.query2label.weight, model.branch.query2label.bias  # type: ignore[union-attr]
    before = [table.detach().clone() for table in tables]  # type: ignore[operator, union-attr]
    trainer.train_step(iter([batch]))
    for table, start in zip(tables, before, strict=True):
        moved = (table != start).view(K, -1).any(1)  # type: ignore[union-attr]
        assert moved[2] and moved.sum() == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": {"train": "complete"}}, "source.train = complete selects all rows"),
        ({"labels": {"head": "encoder"}}, "labels.head = encoder learns through the class embeddings of all labels"),
        ({"labels": {"head": "projected"}}, "labels.head = projected learns"),
        ({"labels": {"head": "decoder"}}, "labels.head = decoder learns"),
        ({"class_tokens": "backbone"}, "class_tokens = backbone reads the class embeddings of all labels"),
    ],
)
def test_where_every_step_reads_all_rows_there_is_one_line(settings: dict[str, Any], message: str) -> None:
    backbone = {"name": "vit_tiny_patch16_224", "options": {"img_size": 32, "depth": 1}, "frozen": False}
    values = {"backbone": backbone, "augment": {"crop": 32}, "optim": {"selected_rows": True}, **settings}
    with pytest.raises(UserError, match=message):
        build_segmentation(build(Stage2Config, values), K)


def test_a_branch_with_tables_of_its_own_leaves_the_hosts_rows_to_the_ranking() -> None:
    for labels in (LabelsConfig("pooled"), LabelsConfig("projected", {"classes": "own", "width": 8, "heads": 2})):
        build_segmentation(config_for(Path("unused"), labels=labels, optim=SELECTED), K)


def test_the_command_of_the_joint_scheme_takes_them(tmp_path: Path) -> None:
    (tmp_path / "stage2.yaml").write_text("labels: {head: pooled}")
    config = joint_config(tmp_path / "stage2.yaml", [("optim.selected_rows", "true")])
    assert config.optim.selected_rows and config.source.train == "joint"


def test_several_workers_are_refused(tmp_path: Path) -> None:
    run = open_run(tmp_path, model="none", config={}, class_names=(), inputs={})
    with pytest.raises(UserError, match="selected_rows = true is for one process, found 2 workers"):
        fit(
            oracle_task(), lambda _: iter(()), lambda _: {}, optim=SELECTED, loop=LoopConfig(), run=run,
            place=replace(Placement(), world=2), metric="mIoU",
        )  # fmt: skip
