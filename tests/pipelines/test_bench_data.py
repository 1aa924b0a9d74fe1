"""`kappaseg bench data`: what it measures, what it advises, what it refuses."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kappaseg_core.errors import UserError
from pipelines.bench.data import advice, configuration
from pipelines.bench.data_network import AnyLabels
from pipelines.bench.data_steps import Laps
from pipelines.cli import main
from stage1_multilabel.config import Stage1Config
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.task import SegmentTask

FILES = {"stage1": Stage1Config, "stage2": Stage2Config}
QUICK = ("--seconds", "0.2", "--workers", "0", "1")


def words(chain: Any, name: str, *more: str) -> list[str]:
    return ["bench", "data", chain.settings(name), "--data.root", str(chain.data), *QUICK, *more]


@pytest.mark.parametrize("name", FILES)
def test_every_step_and_every_loader_is_measured(fresh: Any, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = fresh.home / "speed.json"
    assert main(words(fresh, name, "--json", "--out", str(file))) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(file.read_text())
    assert (record["stage"], record["data"]["images"], record["batch"]) == (int(name[-1]), 6, 2)
    assert [each["workers"] for each in record["loaders"]] == [0, 1]
    assert all(min(each["turns"]) > 0 and len(each["turns"]) == 3 for each in record["loaders"])
    steps = list(record["steps"])
    assert steps[:3] == ["photo: read", "photo: decode", "labels: read, decode"]
    assert {"photo: scale", "collate"} < set(steps)
    assert all(seconds >= 0 for seconds in record["steps"].values())
    assert record["needed_images_per_second"] is None


@pytest.mark.parametrize("name", FILES)
def test_the_step_of_the_network_is_measured_where_asked_for(
    fresh: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(fresh, name, "--network")) == 0
    shown = capsys.readouterr().out
    assert "photo: decode" in shown and "loader workers" in shown
    assert "the network" in shown.splitlines()[-1]


def test_the_step_of_the_network_lies_behind_the_warm_up(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    progress: list[float] = []
    forward = SegmentTask.forward
    monkeypatch.setattr(
        SegmentTask, "forward", lambda task, batch: progress.append(batch.progress) or forward(task, batch)
    )
    assert main(words(fresh, "stage2", "--network", "--labels.head", "pooled", "--labels.warm_up", "0.9")) == 0
    assert min(progress) > 0.9


def test_what_was_measured_before_is_not_lost(fresh: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = fresh.home / "speed.json"
    file.write_text("hours of work\n")
    for out, wanted in ((file, "speed.json is there already; name another file"), (file / "x", "there is no folder")):
        assert main(words(fresh, "stage1", "--out", str(out))) == 2
        assert wanted in capsys.readouterr().err
    assert file.read_text() == "hours of work\n"


def test_scenes_that_are_drawn_are_read_in_one_step(fresh: Any, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = ("--data.kind", "synthetic", "--data.options", "{classes: 5, train: 8, val: 2, size: 40}")
    assert main(words(fresh, "stage2", "--json", *drawn)) == 0
    assert next(iter(json.loads(capsys.readouterr().out)["steps"])) == "read, decode"


def test_a_step_lasts_from_the_last_one_to_its_own_end() -> None:
    laps = Laps()
    for _ in range(2):
        laps.start()
        laps("nothing")
        burn(0.02)
        laps("something")
    means = laps.means()
    assert list(means) == ["nothing", "something"]
    assert means["nothing"] < 0.01 < 0.02 <= means["something"]


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def record(needed: float | None, configured: int = 0) -> dict[str, Any]:
    loaders = [{"workers": workers, "images_per_second": rate} for workers, rate in ((0, 50.0), (1, 60.0), (2, 110.0))]
    return {
        "loader_workers": configured, "needed_images_per_second": needed, "machine": {"cores": 2}, "batch": 8,
        "loaders": loaders, "steps": {"photo: decode": 0.01, "photo: scale": 0.005},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("needed", "configured", "wanted"),
    [
        (None, 0, "gives 50 images/s, enough for a step of 8 images in 160 ms or more; 2 would give 110"),
        (None, 2, "gives 110 images/s, enough for a step of 8 images in 73 ms or more"),
        (40.0, 0, "gives 50 images/s, the network takes 40: the device does not wait"),
        (100.0, 0, "the network could take 100: the device waits 50% of the time; set loop.loader_workers 2"),
        (200.0, 2, "waits 45% of the time; an idle core gives 67, so that it takes 3, and this machine has 2"),
        (120.0, 2, "; an idle core gives 67, so that it takes 2, and this machine has 2, busy with other work"),
        (0.25, 0, "the network takes 0.25: the device does not wait"),
    ],
)  # fmt: skip
def test_the_advice_says_who_waits_and_what_to_set(needed: float | None, configured: int, wanted: str) -> None:
    line = advice(record(needed, configured))
    assert line.startswith(f"loop.loader_workers = {configured} gives ") and line.endswith(wanted)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (["--seconds", "0"], "--seconds = 0, wanted more than 0"),
        (["--step-seconds", "-1"], "--step-seconds = -1, wanted more than 0"),
        (["--step-seconds", "1", "--network"], "give one"),
        (["--workers", "-1"], "--workers = -1, wanted numbers from 0"),
        (["--loop.loader_worker", "2"], "did you mean loader_workers?"),
        (["--loop.loader_prefetch", "0"], "loader_prefetch = 0, wanted at least 1"),
        (["--loop.loader_start", "thread"], "wanted one of 'fork', 'forkserver', 'spawn'"),
        (["--data.root", "nowhere"], "nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_line(fresh: Any, capsys: pytest.CaptureFixture[str], more: list[str], wanted: str) -> None:
    assert main(words(fresh, "stage2", *more)) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and wanted in said[0]


def test_a_damaged_photo_is_one_line(fresh: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for photo in (fresh.data / "images").iterdir():
        photo.write_bytes(photo.read_bytes()[:200])
    assert main(words(fresh, "stage1")) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", FILES)
def test_the_stage_is_told_by_the_settings(fresh: Any, name: str) -> None:
    assert type(configuration(fresh.settings(name), [])) is FILES[name]
    with pytest.raises(UserError, match=r"augment\.crops"):
        configuration(fresh.settings(name), [("augment.crops", "1")])
    with pytest.raises(UserError, match="does not exist"):
        configuration(str(Path("none.yaml")), [])


def test_labels_that_stand_in_for_a_ranking_are_kappa_different_ones() -> None:
    ranking = AnyLabels(3, 7)(["a", "b"], None)
    assert ranking.labels.shape == (2, 3) and bool(ranking.valid.all())  # type: ignore[union-attr]
    assert all(len(set(row)) == 3 for row in ranking.labels.tolist())  # type: ignore[union-attr]
    assert int(torch.as_tensor(ranking.labels).max()) < 7  # type: ignore[union-attr]
