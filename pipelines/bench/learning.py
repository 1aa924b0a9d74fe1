"""What steps of training have in common, whatever the network.

Legend: B images, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kappaseg_core.class_rows import gives_rows
from kappaseg_core.config import OptimConfig
from kappaseg_core.optim import build_optimizer, clip_gradients
from kappaseg_core.ranking import Ranking, to_label_space
from pipelines.bench.variants import Variant

#: labels of an image, about as many as photographs of COCO-Stuff show; what matches segments to queries depends on it
PRESENT = 8
#: told the name of the part that has just ended
Mark = Callable[[str], None]


def untold(part: str) -> None:
    """A mark that nobody hears."""


def autocast(variant: Variant) -> torch.autocast | ExitStack:
    """bf16 where it is asked for, with fp32 where the network asks for it. "meta" has none."""
    if variant.precision == "fp32" or variant.device == "meta":
        return ExitStack()
    return torch.autocast(torch.device(variant.device).type, torch.bfloat16)


def regions(images: Tensor, ranking: Ranking) -> Tensor:
    """A label map i64 [B, H, W] of the first labels of each ranking, `PRESENT` of them, in squares."""
    height, width = images.shape[2:]
    cells = torch.randint(min(PRESENT, ranking.kappa), (len(images), 1, 8, 8))
    ranks = nn.functional.interpolate(cells.float(), (height, width)).long()[:, 0]
    return to_label_space(ranks, ranking)


def learning(
    groups: list[dict[str, Any]], optim: OptimConfig, loss: Callable[[], Tensor], mark: Mark
) -> Callable[[], object]:
    """One step of the configured optimiser down the gradient of a loss.

    groups: of all that is trained (`parameter_groups`). Gradients are held from the first step on, but for those of
    single rows.
    """
    optimizer = build_optimizer(groups, optim)
    for group in optimizer.param_groups:
        group["lr"] = optim.lr * group["lr_factor"]
    trained = [parameter for group in groups for parameter in group["params"]]
    for parameter in trained:
        if not gives_rows(parameter):
            parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        mark("optimiser")
        found = loss()
        mark("loss")
        if found.requires_grad:  # a frozen backbone alone learns nothing
            found.backward()
        mark("backbone, backward")
        if optim.clip is not None:
            clip_gradients(trained, optim)
        optimizer.step()
        mark("optimiser")

    return step
