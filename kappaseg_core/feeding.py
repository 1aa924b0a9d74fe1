"""Batches as a function of the step: which samples, in which order, with which random augmentation.

Position p of the endless sample stream (p = step × batch size + place in the batch) decides everything: epoch p // n is
a permutation drawn from (seed, epoch), and the augmentation of the sample is drawn from (seed, p). So any step's batch
can be made without the ones before it, by any number of loader or training workers.

A loader runs through the whole training in one pass, so its workers are started once. They hand over small types
(handover.py), which are widened and normalised on the device of the training process.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from kappaseg_core.allocator import keep_freed_memory
from kappaseg_core.config import LoopConfig
from kappaseg_core.errors import UserError
from kappaseg_core.handover import Handover, collate
from kappaseg_core.placement import Placement
from kappaseg_core.scenes.in_parallel import start_worker
from kappaseg_core.seeding import seed_of
from kappaseg_core.structures import Batch


class Examples(Protocol):
    """Training samples: `make(index, seed)` gives one sample, augmented from `seed` alone.

    A sample is (View or feature maps, target, image_id). Picklable: loader workers that are not forked get a copy.
    """

    def __len__(self) -> int: ...

    def make(self, index: int, seed: int) -> Any: ...


def batches(
    examples: Examples, target: str, loop: LoopConfig, place: Placement, *, first_step: int = 0
) -> Iterator[Batch]:
    """This worker's micro-batches from `first_step` to the end of the run, `loop.accumulate` for each step, on its
    device.

    target: what the samples' targets are, `labels`, `mask` or `objects` (fields of handover.Handover).
    Raises UserError for a sample that cannot be read; `lost_workers_told` does where a loader worker is lost.
    """
    for number, loaded in enumerate(handovers(examples, target, loop, place, first_step=first_step)):
        yield loaded.batch(place.device, (first_step + number // loop.accumulate) / loop.steps)


def handovers(
    examples: Examples, target: str, loop: LoopConfig, place: Placement, *, first_step: int = 0
) -> Iterator[Handover]:
    """`batches` as they leave the loader: not yet on the device, nor widened."""
    workers: dict[str, Any] = {}
    if loop.loader_workers:
        workers = {
            "num_workers": loop.loader_workers, "prefetch_factor": loop.loader_prefetch,
            "multiprocessing_context": _context(loop.loader_start, examples), "worker_init_fn": _start_loader,
        }  # fmt: skip
    loader = DataLoader(
        _Stream(examples, len(examples), loop.seed), batch_sampler=_Positions(loop, place, first_step),
        collate_fn=partial(_together, target=target), pin_memory=place.device.type == "cuda", **workers,
    )  # fmt: skip
    with _ctrl_c_later():
        stream = iter(loader)
    while True:
        with one_thread():
            loaded = next(stream, None)
        if loaded is None:
            return
        if isinstance(loaded, UserError):
            raise loaded
        yield loaded


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes in one thread, as samples are made: in the training process as in a worker.

    A mean over an image, and with it a view, would depend on the number of threads in its last bits, and threads that
    wait for one another over pieces this small take ten times the processor's time where others want it too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def lost_workers_told() -> Iterator[None]:
    """A loader worker that is ended from outside is a UserError. Torch says so wherever the training process is then,
    not only where it asks for the next batch.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise UserError(
            "a loader worker was ended from outside, which systems do where memory or shared memory runs out; "
            "the same command goes on from the last saved step, with fewer --loop.loader_workers"
        ) from None


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Ctrl-C is the training process's to handle, after this block; workers that are started in it never see one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _context(start: str | None, examples: Examples) -> BaseContext:
    context = multiprocessing.get_context(start)
    if context.get_start_method() == "forkserver":  # which imports once what each worker would
        context.set_forkserver_preload([__name__, type(examples).__module__])
    return context


def _start_loader(worker: int) -> None:
    """Called by torch, which has limited its own threads to one by now; photos and masks are decoded without any."""
    start_worker()
    keep_freed_memory()


def _together(samples: Sequence[Any], *, target: str) -> Handover | UserError:
    """The samples as one, or the first mistake among them."""
    mistakes = (sample for sample in samples if isinstance(sample, UserError))
    return next(mistakes, None) or collate(samples, target=target)


class _Positions:
    """Stream positions of each micro-batch: worker w of W takes the w-th slice of every micro-batch."""

    def __init__(self, loop: LoopConfig, place: Placement, first_step: int) -> None:
        self.loop, self.place, self.first_step = loop, place, first_step
        self.micro = loop.batch_size // loop.accumulate
        self.share = self.micro // place.world

    def __len__(self) -> int:
        return (self.loop.steps - self.first_step) * self.loop.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.loop.steps):
            for micro in range(self.loop.accumulate):
                start = step * self.loop.batch_size + micro * self.micro + self.place.worker * self.share
                yield list(range(start, start + self.share))


class _Stream(Dataset[Any]):
    """The endless sample stream, addressed by position."""

    def __init__(self, examples: Examples, samples: int, seed: int) -> None:
        self.examples, self.samples, self.seed = examples, samples, seed
        self.epoch, self.order = -1, torch.empty(0)

    def __getitem__(self, position: int) -> Any:
        """A sample, or the mistake that it is: raised in a worker, torch would make it a traceback's text."""
        epoch, place = divmod(position, self.samples)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "epoch", epoch))
            self.epoch, self.order = epoch, torch.randperm(self.samples, generator=generator)
        try:
            return self.examples.make(int(self.order[place]), seed_of(self.seed, "sample", position))
        except UserError as error:
            return UserError(str(error))
