"""Batches as a function of the step: which samples, in which order, with which random augmentation.

Position p of the endless sample stream (p = step × batch size + place in the batch) decides everything: epoch p // n is
a permutation drawn from (seed, epoch), and the augmentation of the sample is drawn from (seed, p). So any step's batch
can be made without the ones before it, by any number of loader or training workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from kappaseg_core.config import LoopConfig
from kappaseg_core.placement import Placement
from kappaseg_core.seeding import seed_of
from kappaseg_core.structures import Batch


class Examples(Protocol):
    """Training samples: `make(index, seed)` gives one sample, augmented from `seed` alone."""

    def __len__(self) -> int: ...

    def make(self, index: int, seed: int) -> Any: ...


def batches(
    examples: Examples,
    collate: Callable[[Sequence[Any]], Batch],
    loop: LoopConfig,
    place: Placement,
    *,
    first_step: int = 0,
) -> Iterator[Batch]:
    """This worker's micro-batches from `first_step` to the end of the run, `loop.accumulate` for each step."""
    positions = _Positions(loop, place, first_step)
    loader = DataLoader(
        _Stream(examples, len(examples), loop.seed),
        batch_sampler=positions,
        collate_fn=collate,
        num_workers=loop.loader_workers,
        pin_memory=place.device.type == "cuda",
    )
    for number, batch in enumerate(loader):
        yield replace(batch, progress=(first_step + number // loop.accumulate) / loop.steps)


def collate(samples: Sequence[tuple[Any, Any, str]], *, given: str, target: str) -> Batch:
    """(image or feature maps, target, image_id) samples → a Batch with the fields `given` and `target` filled."""
    inputs, targets, ids = zip(*samples, strict=True)
    goal = torch.stack([torch.as_tensor(t) for t in targets])
    goal = goal.float() if target == "labels" else goal.long()
    together = torch.stack(inputs) if given == "image" else tuple(map(torch.stack, zip(*inputs, strict=True)))
    tensors: dict[str, Any] = {given: together, target: goal}
    return Batch(ids, **tensors)


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
        epoch, place = divmod(position, self.samples)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "epoch", epoch))
            self.epoch, self.order = epoch, torch.randperm(self.samples, generator=generator)
        return self.examples.make(int(self.order[place]), seed_of(self.seed, "sample", position))
