"""Steps of training, taken: with random numbers for images, and without a weight file."""

from __future__ import annotations

import time

import torch

from pipelines.plan.machine import Machine, finish
from pipelines.plan.step import Config, Training, batch_of, task_of, without_numbers

STEPS = 3


def step_seconds(config: Config, classes: int, machine: Machine) -> float:
    """Of one step, the least of those behind the first, which makes the optimiser's state."""
    device = torch.device(machine.device)
    task = task_of(without_numbers(config), classes).to(device)
    trainer = Training(task, config.optim, config.loop, gpu=machine.gpu)
    taken = []
    for step in range(1, STEPS + 1):
        start = time.perf_counter()
        trainer.step(lambda: batch_of(config, classes, task.model).to(device), step)
        finish(device)
        taken.append(time.perf_counter() - start)
    return min(taken[1:]) * config.loop.accumulate / trainer.micro_batches
