"""Where a process computes: devices, precision, and two workers that share the work."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kappaseg_core.checkpoint import RunDirectory
from kappaseg_core.config import LoopConfig
from kappaseg_core.errors import UserError
from kappaseg_core.placement import Placement, pick_device, place
from kappaseg_core.scenes import open_scenes
from label_cache import LabelCache
from stage1_multilabel.rank import rank_images
from stage2_segmentation.evaluate import evaluate_model, load_segmentation
from stage2_segmentation.sources.complete import Complete
from tests.kappaseg_core import two_workers

PROGRAM = Path(two_workers.__file__)
WORLD = 2


def test_a_single_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    here = place(LoopConfig(device="cpu"))
    value = torch.ones(2)
    assert here == Placement(0, 1, torch.device("cpu"), "fp32")
    assert torch.equal(here.total(value), value)
    assert (here.agree(True), here.agree(False)) == (True, False)
    assert not torch.distributed.is_initialized()
    module = torch.nn.Linear(1, 1)
    assert here.wrap(module) is module


@pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_network_computes_in_the_precision_asked_for(precision: str, expected: torch.dtype) -> None:
    with Placement(precision=precision).autocast():
        assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(2, 2)).dtype == expected


def test_half_precision_on_the_cpu_is_refused() -> None:
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        place(LoopConfig(device="cpu", precision="fp16"))


def test_an_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"device = 'toaster', wanted auto, cpu, cuda or cuda:N"):
        pick_device("toaster", 0)


def test_a_missing_gpu_is_an_error_and_not_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no GPU here"):
        pick_device("cuda:0", 0)
    assert pick_device("auto", 0).type == "cpu"


def test_a_batch_that_the_workers_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(UserError, match=r"loop\.batch_size = 6 is no multiple of 2 workers × 2 micro-batches"):
        place(LoopConfig(device="cpu", batch_size=6, accumulate=2), to_train=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two workers left their runs, their cache and their notes."""
    folder = tmp_path_factory.mktemp("workers")
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(WORLD)}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parents[2])}
    logs = [folder / f"{worker}.log" for worker in range(WORLD)]
    processes = []
    for worker, log in enumerate(logs):
        variables = {**os.environ, **shared, "RANK": str(worker), "LOCAL_RANK": str(worker)}
        with log.open("w") as output:
            command = [sys.executable, str(PROGRAM), str(folder)]
            processes.append(subprocess.Popen(command, env=variables, stdout=output, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * WORLD, "\n".join(log.read_text()[-3000:] for log in logs)
    return folder


@pytest.fixture(scope="module")
def notes(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"worker-{worker}.json").read_text()) for worker in range(WORLD)]


def without_company() -> Placement:
    return Placement()


@pytest.mark.slow
def test_sums_are_over_all_workers_and_leave_the_summands(notes: list[dict[str, Any]]) -> None:
    assert [(note["worker"], note["world"]) for note in notes] == [(0, 2), (1, 2)]
    assert [note["total"] for note in notes] == [[3.0, 20.0]] * 2
    assert [note["own"] for note in notes] == [[1.0, 10.0], [2.0, 10.0]]


@pytest.mark.slow
def test_the_first_worker_decides(notes: list[dict[str, Any]]) -> None:
    assert [note["agreed"] for note in notes] == [[True, False]] * 2


@pytest.mark.slow
def test_all_workers_stop_early_together(notes: list[dict[str, Any]]) -> None:
    """The first worker's evaluations get worse from step 2 on, the other's better: with patience 1 both stop at 3."""
    assert [note["stopped_at"] for note in notes] == [3, 3]


@pytest.mark.slow
def test_workers_train_together_with_the_compiler(notes: list[dict[str, Any]], tmp_path: Path, folder: Path) -> None:
    """Both log the losses of one process without it, over two accumulated micro-batches."""
    loop = replace(two_workers.LOOP, accumulate=2)
    two_workers.trained(without_company(), tmp_path, loop, iter([0.0] * loop.steps))
    alone = [line["loss"] for line in RunDirectory(tmp_path).metrics() if line["kind"] == "train"]
    assert notes[0]["compiled"] == notes[1]["compiled"] == pytest.approx(alone, rel=1e-4)
    assert "loop.compile" not in "".join(log.read_text() for log in folder.glob("*.log"))


@pytest.mark.slow
def test_workers_share_the_images_of_an_evaluation(notes: list[dict[str, Any]]) -> None:
    """No image twice, none left out (five for two workers), and the numbers of a single process."""
    ids = open_scenes(two_workers.DATA, "train").image_ids
    assert sorted(notes[0]["asked"] + notes[1]["asked"]) == sorted(ids)
    assert {len(note["asked"]) for note in notes} == {2, 3}
    alone = json.loads(json.dumps(two_workers.evaluation(without_company())["evaluation"]))
    assert notes[0]["evaluation"] == alone
    assert notes[1]["evaluation"] == alone


@pytest.mark.slow
def test_training_together_gives_one_network(folder: Path, notes: list[dict[str, Any]]) -> None:
    """Both workers end with the numbers that the saved network has."""
    assert notes[0]["segmentation"] == notes[1]["segmentation"]
    config = two_workers.segmentation(folder)
    model, _, names = load_segmentation(folder / config.run_name)
    scenes = open_scenes(config.data, "val")
    found = evaluate_model(model, scenes, Complete(len(names)), config.inference, without_company())
    assert found.numbers() == pytest.approx(notes[0]["segmentation"])


@pytest.mark.slow
def test_workers_share_the_images_of_a_ranking(notes: list[dict[str, Any]]) -> None:
    ids = [i for split in ("train", "val") for i in open_scenes(two_workers.DATA, split).image_ids]
    assert sorted(notes[0]["scored"] + notes[1]["scored"]) == sorted(ids)
    assert [note["rank_error"] for note in notes] == ["", ""]
    assert all(note["scored"] for note in notes)


@pytest.mark.slow
def test_every_ranked_image_is_written_once(notes: list[dict[str, Any]]) -> None:
    ids = [i for split in ("train", "val") for i in open_scenes(two_workers.DATA, split).image_ids]
    assert sorted(notes[0]["written"] + notes[1]["written"]) == sorted(ids)


@pytest.mark.slow
def test_a_cache_that_two_workers_wrote_is_that_of_one(folder: Path, tmp_path: Path) -> None:
    config = two_workers.rank(folder)
    alone = rank_images(type(config)(**{**asdict(config), "data": config.data, "cache": str(tmp_path)}))
    together = LabelCache.open(folder / "labels")
    ids = open_scenes(config.data, "train").image_ids
    ours, theirs = together.lookup(ids), alone.lookup(ids)
    assert ours.labels.tolist() == theirs.labels.tolist()
    assert ours.scores.tolist() == theirs.scores.tolist()
    assert together.key == alone.key
