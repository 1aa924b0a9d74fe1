"""Batches as a function of the step, whoever loads them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kappaseg_core.config import LoopConfig
from kappaseg_core.feeding import batches
from kappaseg_core.placement import Placement
from kappaseg_core.structures import Batch

SAMPLES = 7
LOOP = LoopConfig(steps=9, batch_size=4, seed=5)


class Draws:
    """Samples that show their index and the seed they were made from."""

    def __len__(self) -> int:
        return SAMPLES

    def make(self, index: int, seed: int) -> tuple[tuple[Tensor, ...], Tensor, str]:
        number = torch.rand(1, generator=torch.Generator().manual_seed(seed))
        return (number,), torch.tensor([index, 0]), f"image-{index}"


def content(batch: Batch) -> tuple[object, ...]:
    assert batch.features is not None
    assert batch.labels is not None
    return batch.image_id, batch.features[0].flatten().tolist(), batch.labels.tolist()


def fed(loop: LoopConfig = LOOP, place: Placement | None = None, first_step: int = 0) -> list[tuple[object, ...]]:
    place = place or Placement()
    return [content(batch) for batch in batches(Draws(), "labels", loop, place, first_step=first_step)]


def test_every_epoch_shows_every_sample_once_in_another_order() -> None:
    order = [name for names, _, _ in fed() for name in names]  # type: ignore[attr-defined]
    epochs = [order[start : start + SAMPLES] for start in range(0, 35, SAMPLES)]
    assert all(Counter(epoch) == Counter(f"image-{i}" for i in range(SAMPLES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_a_sample_is_augmented_anew_each_time() -> None:
    draws = [number for _, numbers, _ in fed() for number in numbers]  # type: ignore[attr-defined]
    assert len(set(draws)) == LOOP.steps * LOOP.batch_size


def test_batches_are_the_same_again_and_others_with_another_seed() -> None:
    assert fed() == fed()
    assert fed() != fed(replace(LOOP, seed=6))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("first_step", [1, 4, 9])
def test_any_step_can_be_begun_at(first_step: int, accumulate: int) -> None:
    loop = replace(LOOP, accumulate=accumulate)
    assert fed(loop, first_step=first_step) == fed(loop)[first_step * accumulate :]


def test_the_outer_random_state_decides_nothing() -> None:
    torch.manual_seed(1)
    first = fed()
    torch.manual_seed(2)
    assert fed() == first


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_workers_change_nothing(workers: int) -> None:
    loop = replace(LOOP, steps=4)
    assert fed(replace(loop, loader_workers=workers), first_step=1) == fed(loop, first_step=1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_workers_and_micro_batches_divide_the_batch(accumulate: int) -> None:
    """Two workers' shares, joined, are the single worker's batch, in order."""
    alone, divided = fed(), [fed(replace(LOOP, accumulate=accumulate), Placement(w, 2)) for w in (0, 1)]
    for step, (names, numbers, _) in enumerate(alone):
        micro = range(step * accumulate, (step + 1) * accumulate)
        parts = [divided[worker][m] for m in micro for worker in (0, 1)]
        assert tuple(name for part in parts for name in part[0]) == names  # type: ignore[attr-defined]
        assert [number for part in parts for number in part[1]] == numbers  # type: ignore[attr-defined]
