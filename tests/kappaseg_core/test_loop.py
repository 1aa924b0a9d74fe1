"""The training loop: exact resume, early stopping, averaging, accumulation, and run directories."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kappaseg_core.checkpoint import RunDirectory, open_run
from kappaseg_core.config import LoopConfig, OptimConfig
from kappaseg_core.errors import UserError
from kappaseg_core.feeding import batches
from kappaseg_core.loop import fit
from kappaseg_core.optim import Part, parameter_groups
from kappaseg_core.placement import Placement
from kappaseg_core.structures import Batch

HERE = Placement()
LOOP = LoopConfig(steps=12, batch_size=4, save_every=5, log_every=3, ema=0.9, seed=3)


class Noise:
    """Seven samples whose content follows from (index, seed) alone, as every example set's must."""

    def __len__(self) -> int:
        return 7

    def make(self, index: int, seed: int) -> tuple[tuple[Tensor], Tensor, str]:
        generator = torch.Generator().manual_seed(seed % 2**31)
        image = torch.randn(3, 4, 4, generator=generator) + index
        return (image,), torch.tensor([index % 2, 1 - index % 2]), f"image-{index}"


class Net(nn.Module):
    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(dropout))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(image))
        return logits


class NetTask(nn.Module):
    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Net(dropout)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.features is not None
        loss = nn.functional.binary_cross_entropy_with_logits(self.model(batch.features[0]), batch.labels)
        return loss, {"twice": 2 * loss.detach()}

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, Any]]:
        return parameter_groups([Part("network", self.model)], optim)


class Killed(Exception):
    pass


def train(
    folder: Path,
    loop: LoopConfig = LOOP,
    *,
    kill_at: int | None = None,
    values: list[float] | None = None,
    lr: float = 0.05,
    dropout: float = 0.3,
):
    run = open_run(folder, model="none", config={"x": 1}, class_names=("a", "b"), inputs={})
    task = NetTask(dropout)
    scores = iter(values or [])

    def feed(first: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches(Noise(), "labels", loop, HERE, first_step=first)):
            if kill_at is not None and first * loop.accumulate + number == kill_at:
                raise Killed
            yield batch

    def evaluate(network: nn.Module) -> dict[str, float]:
        assert not network.training
        return {"score": next(scores, 0.0)}

    return fit(task, feed, evaluate, optim=OptimConfig(lr=lr), loop=loop, run=run, place=HERE, metric="score")


def contents(folder: Path) -> dict[str, bytes]:
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    del files["log.txt"]  # has times
    summary = json.loads(files.pop("summary.json"))
    files["summary"] = repr([summary["steps"], summary["metrics"]]).encode()
    return files


@pytest.mark.parametrize(("kill_at", "workers"), [(0, 0), (3, 0), (5, 0), (6, 0), (6, 1), (11, 0)])
def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path, kill_at: int, workers: int) -> None:
    train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", replace(LOOP, loader_workers=workers), kill_at=kill_at)
    train(tmp_path / "killed")
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert whole == killed
    assert sorted(whole) == ["metrics.jsonl", "run.yaml", "summary", "weights.safetensors"]


def test_a_complete_run_is_not_done_again(tmp_path: Path) -> None:
    first = train(tmp_path)
    before = contents(tmp_path)
    assert train(tmp_path, kill_at=0) == first
    assert contents(tmp_path) == before


def test_a_half_written_log_line_is_forgotten(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", kill_at=9)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')
    train(tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_accumulated_micro_batches_log_the_mean_loss(tmp_path: Path) -> None:
    """Without batch statistics and dropout two half batches are one whole batch."""

    def plain() -> NetTask:
        task = NetTask()
        task.model.backbone = nn.Sequential(nn.Conv2d(3, 4, 3))
        return task

    losses = []
    for accumulate in (1, 2):
        loop = replace(LOOP, accumulate=accumulate, log_every=1, ema=None)
        run = open_run(tmp_path / str(accumulate), model="none", config={}, class_names=("a", "b"), inputs={})
        torch.manual_seed(0)
        task = plain()
        fit(
            task, lambda first, loop=loop: batches(Noise(), "labels", loop, HERE, first_step=first),
            lambda _: {"score": 0.0}, optim=OptimConfig(lr=0.01), loop=loop, run=run, place=HERE, metric="score",
        )  # fmt: skip
        losses.append([line["loss"] for line in run.metrics() if line["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_number_that_begins_late_is_averaged_over_the_steps_that_have_it(tmp_path: Path) -> None:
    class Late(NetTask):
        steps = 0

        def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            loss, numbers = super().forward(batch)
            self.steps += 1
            return loss, numbers | ({"late": torch.tensor(4.0)} if self.steps > 2 else {})

    run = open_run(tmp_path / "run", model="none", config={}, class_names=("a", "b"), inputs={})
    loop = replace(LOOP, steps=3)
    fit(
        Late(), lambda first: batches(Noise(), "labels", loop, HERE, first_step=first), lambda _: {"score": 0.0},
        optim=OptimConfig(lr=0.01), loop=loop, run=run, place=HERE, metric="score",
    )  # fmt: skip
    (line,) = (line for line in run.metrics() if line["kind"] == "train")
    assert line["late"] == 4.0 and line["twice"] == pytest.approx(2 * line["loss"])


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    loop = replace(LOOP, steps=12, eval_every=2, patience=1)
    summary = train(tmp_path / "stopped", loop, values=[0.1, 0.5, 0.4, 0.3, 0.9])
    assert summary.steps == 8  # best at 4, none better at 6 and 8
    assert summary.best_step == 4
    best = train(tmp_path / "short", replace(loop, steps=12, patience=0), values=[0.1, 0.5, 0.4])
    assert best.best_step == 4
    stopped, short = (load_file(tmp_path / n / "weights.safetensors") for n in ("stopped", "short"))
    assert all(torch.equal(stopped[name], short[name]) for name in stopped)


def test_the_averaged_weights_are_the_result(tmp_path: Path) -> None:
    train(tmp_path / "averaged")
    train(tmp_path / "last", replace(LOOP, ema=None))
    averaged, last = (load_file(tmp_path / n / "weights.safetensors") for n in ("averaged", "last"))
    assert any(not torch.equal(averaged[name], last[name]) for name in averaged)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the loss is"):
        train(tmp_path, lr=1e30)


def test_a_run_directory_of_another_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, kill_at=7)
    with pytest.raises(UserError, match="another configuration: x is 1 there, 2 here"):
        open_run(tmp_path, model="none", config={"x": 2}, class_names=("a", "b"), inputs={})


def test_a_run_that_learnt_nothing_takes_the_corrected_settings(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, kill_at=0)
    open_run(tmp_path, model="none", config={"x": 2}, class_names=("a", "b"), inputs={})
    assert "x: 2" in (tmp_path / "run.yaml").read_text()


def test_paths_and_loader_workers_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    settings = {"out": "a", "loop": {"loader_workers": 0, "seed": 1}}
    open_run(tmp_path, model="none", config=settings, class_names=(), inputs={})
    (tmp_path / "summary.json").write_text("{}")
    moved = {"out": "b", "loop": {"loader_workers": 4, "seed": 1}}
    assert isinstance(open_run(tmp_path, model="none", config=moved, class_names=(), inputs={}), RunDirectory)
    with pytest.raises(UserError, match=r"loop\.seed is 1 there, 2 here"):
        open_run(tmp_path, model="none", config={"out": "a", "loop": {"seed": 2}}, class_names=(), inputs={})


def test_a_record_from_before_a_setting_is_as_if_it_were_off(tmp_path: Path) -> None:
    open_run(tmp_path, model="none", config={"loop": {"seed": 1}}, class_names=(), inputs={})
    (tmp_path / "summary.json").write_text("{}")
    open_run(tmp_path, model="none", config={"loop": {"seed": 1, "compile": False}}, class_names=(), inputs={})
    with pytest.raises(UserError, match=r"loop\.compile is None there, True here"):
        open_run(tmp_path, model="none", config={"loop": {"seed": 1, "compile": True}}, class_names=(), inputs={})


def test_a_folder_of_other_files_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not a run directory"):
        open_run(tmp_path, model="none", config={}, class_names=(), inputs={})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
