"""Where a process computes: its worker number, device and precision; with or without a process group."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kappaseg_core.config import LoopConfig
from kappaseg_core.errors import UserError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """One process among `world`. A single process needs no process group; all calls below then do nothing."""

    worker: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"

    @property
    def is_first(self) -> bool:
        return self.worker == 0

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 or fp16 for the network; losses and norms cast to fp32 themselves."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST[self.precision])

    def total(self, value: Tensor) -> Tensor:
        """Sum over all workers."""
        if self.world > 1:
            shared = value.to(self.device, copy=True)  # nccl sums only what lies on its device
            dist.all_reduce(shared)
            return shared.to(value.device)
        return value

    def agree(self, flag: bool) -> bool:
        """The first worker's decision, on every worker: nobody stops alone."""
        if self.world == 1:
            return flag
        shared = torch.tensor([int(flag)], device=self.device)
        dist.broadcast(shared, 0)
        return bool(shared.item())

    def share_buffers(self, module: nn.Module) -> None:
        """Give every worker the first one's buffers: batch-norm statistics are of each worker's own images."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """Until every worker is here."""
        if self.world > 1:
            dist.barrier()

    def wrap(self, task: nn.Module) -> nn.Module:
        """The task as the loop calls it: distributed data parallel when there are other workers."""
        if self.world == 1:
            return task
        return nn.parallel.DistributedDataParallel(task)


def place(loop: LoopConfig, *, to_train: bool = False) -> Placement:
    """This process's placement. Under `torchrun` the process group is joined (nccl on GPUs, else gloo).

    to_train: also check that the batch can be shared among the workers.
    Raises UserError for a device that is not there or cannot do the precision asked for.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    worker = int(os.environ.get("RANK", "0"))
    device = pick_device(loop.device, int(os.environ.get("LOCAL_RANK", "0")))
    if loop.precision == "fp16" and device.type == "cpu":
        raise UserError("loop.precision = fp16 needs a GPU (its loss scaling has no CPU form); use bf16 or fp32")
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if to_train and loop.batch_size % (world * loop.accumulate):
        raise UserError(
            f"loop.batch_size = {loop.batch_size} is no multiple of {world} workers × {loop.accumulate} micro-batches"
        )
    return Placement(worker, world, device, loop.precision)


def pick_device(name: str, local: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device = {name!r}, wanted auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device = {name!r}, but torch finds no GPU here; use cpu or auto")
        device = torch.device("cuda", local if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device
