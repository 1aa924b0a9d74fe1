"""Loader workers: however started, they give the same batches, end in one line, and leave nothing behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kappaseg_core.config import LoopConfig
from kappaseg_core.errors import UserError
from kappaseg_core.feeding import batches, lost_workers_told, one_thread
from kappaseg_core.placement import Placement
from kappaseg_core.scenes.flaws import UnknownValues
from kappaseg_core.structures import Batch
from stage2_segmentation.augment import TrainExamples
from stage2_segmentation.config import AugmentConfig
from tests.blobs import Blobs

LOOP = LoopConfig(steps=3, batch_size=2, seed=1)
AUGMENT = AugmentConfig(short_side=30, crop=24)


class Numbered:
    """Samples that hold one number about the process that made them."""

    def __len__(self) -> int:
        return 5

    def make(self, index: int, seed: int) -> tuple[tuple[Tensor, ...], Tensor, str]:
        return (torch.tensor(float(self.number())),), torch.tensor([index]), "sample"

    def number(self) -> int:
        return os.getpid()


class Threads(Numbered):
    """The threads that torch may use, and a thousand times those that the process has, our watching one apart."""

    def number(self) -> int:
        torch.ones(400, 400).exp() @ torch.ones(400, 400)  # large enough for torch to want more
        known = threading.active_count()  # ours, and the one that feeds torch's queue
        return torch.get_num_threads() + 1000 * (len(os.listdir("/proc/self/task")) - known)


class Flawed(Numbered):
    def number(self) -> int:
        raise UnknownValues("mask m.png holds value 9", {9: 1})


class Broken(Numbered):
    def number(self) -> int:
        raise RuntimeError("a fault of the program")


class Killed(Numbered):
    def number(self) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")


def examples() -> TrainExamples:
    return TrainExamples(Blobs(), AUGMENT, (0.5,) * 3, (0.5,) * 3)


def content(found: Iterator[Batch]) -> list[tuple[object, ...]]:
    return [(b.image_id, b.image.numpy().tobytes(), b.mask.numpy().tobytes()) for b in found]  # type: ignore[union-attr]


@pytest.mark.parametrize("start", ["fork", pytest.param("forkserver", marks=pytest.mark.slow),
                                   pytest.param("spawn", marks=pytest.mark.slow)])  # fmt: skip
def test_batches_do_not_depend_on_how_workers_are_started(start: str) -> None:
    loop = replace(LOOP, loader_workers=2, loader_start=start, loader_prefetch=1)  # type: ignore[arg-type]
    assert content(batches(examples(), "mask", loop, Placement())) == content(
        batches(examples(), "mask", LOOP, Placement())
    )


def test_the_training_process_makes_samples_in_one_thread_and_trains_in_all() -> None:
    class Asked(Numbered):
        def number(self) -> int:
            return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        stream = batches(Asked(), "labels", LOOP, Placement())
        assert [(next(stream).features[0].tolist(), torch.get_num_threads()) for _ in range(3)] == [([1, 1], 2)] * 3  # type: ignore[index]
    finally:
        torch.set_num_threads(before)


def test_the_number_of_threads_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def numbers(made: Numbered, workers: int) -> set[int]:
    loop = replace(LOOP, loader_workers=workers)
    with lost_workers_told():
        found = [batch.features for batch in batches(made, "labels", loop, Placement())]
    return {int(number) for maps in found if maps is not None for number in maps[0]}


def test_workers_live_as_long_as_the_training_and_no_longer() -> None:
    assert len(numbers(Numbered(), 2)) == 2
    assert not multiprocessing.active_children()


def test_batches_that_nobody_waits_for_any_more_end_their_workers() -> None:
    stream = batches(Numbered(), "labels", replace(LOOP, steps=50, loader_workers=2), Placement())
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    del stream
    assert not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_a_worker_computes_in_one_thread() -> None:
    assert numbers(Threads(), 1) == {1}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flaw_in_the_data_is_one_line(workers: int) -> None:
    """A UserError of any kind, though torch cannot make all of them again."""
    with pytest.raises(UserError, match=r"^mask m\.png holds value 9$"):
        numbers(Flawed(), workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_program_is_none_of_the_user(workers: int) -> None:
    with pytest.raises(RuntimeError, match="a fault of the program"):
        numbers(Broken(), workers)


def test_a_worker_that_is_ended_from_outside_is_one_line() -> None:
    with pytest.raises(UserError, match="fewer --loop"):
        numbers(Killed(), 1)


WATCHED = """
import signal, sys, time
from pathlib import Path
from kappaseg_core.config import LoopConfig
from kappaseg_core.feeding import batches
from kappaseg_core.placement import Placement
from tests.kappaseg_core.test_loader_workers import Numbered

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which programs in the background begin without
    loop = LoopConfig(steps=10**6, batch_size=2, loader_workers=2, loader_start=sys.argv[1])
    seen = set()
    for batch in batches(Numbered(), "labels", loop, Placement()):
        seen |= {int(number) for number in batch.features[0]}
        if len(seen) == 2:
            print(*seen, flush=True)
            time.sleep(60)
            sys.exit("was not stopped")
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL])
def test_workers_go_with_their_training(tmp_path: Path, start: str, signal_: signal.Signals) -> None:
    """After Ctrl-C, which reaches all of them, and where the training alone is killed."""
    program = tmp_path / "watched.py"
    program.write_text(WATCHED, "utf-8")
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, str(program), start], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root,
        env={**os.environ, "PYTHONPATH": root}, start_new_session=True,
    ) as training:  # fmt: skip
        assert training.stdout is not None and training.stderr is not None
        workers = [int(word) for word in training.stdout.readline().split()]
        assert len(workers) == 2, training.stderr.read()
        (os.killpg if signal_ == signal.SIGINT else os.kill)(training.pid, signal_)
        said = training.stderr.read()
        assert said.count("Traceback") == (signal_ == signal.SIGINT), said  # that of the training process alone
    until = time.monotonic() + 20
    while (left := [worker for worker in workers if lives(worker)]) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
