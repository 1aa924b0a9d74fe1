"""Memory of a training process that has not begun: `python -m pipelines.plan.base` prints MiB."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

import stage1_multilabel.train  # noqa: F401
import stage2_segmentation.train  # noqa: F401
from kappaseg_core.progress import memory_mib
from stage2_segmentation.hosts.transformer import Block

SMALL = 32  # pixels and channels


def base_mib() -> int:
    """Resident memory of a process with everything imported, after a step of a network of no size, in MiB.

    Measured in a process of its own, since this one holds more by now.
    """
    found = subprocess.run([sys.executable, "-m", __name__], check=True, capture_output=True, text=True)
    return int(found.stdout)


def small_step() -> None:
    """A product, a convolution and an attention, forward and backward: libraries make room at their first use."""
    network = nn.ModuleList((nn.Conv2d(3, SMALL, 3, stride=2), nn.BatchNorm2d(SMALL), Block(SMALL, 1, SMALL, 0.1)))
    optimizer = torch.optim.AdamW(network.parameters())
    convolution, norm, block = network
    cells = norm(convolution(torch.zeros(1, 3, SMALL, SMALL)))
    block(cells.flatten(2).mT).sum().backward()
    optimizer.step()


if __name__ == "__main__":
    small_step()
    print(memory_mib())
