"""Optimisers and schedules. A schedule is a pure function of the step, so it has no state to save."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kappaseg_core.class_rows import class_tables, give_rows
from kappaseg_core.config import OptimConfig
from kappaseg_core.row_optim import RowAdamW, RowSGD


@dataclass(frozen=True)
class Part:
    """A module with a learning rate and a weight decay of its own.

    lr: factor on the learning rate.   weight_decay: None = that of the optimiser.
    """

    name: str
    module: nn.Module
    lr: float = 1.0
    weight_decay: float | None = None


def backbone_part(backbone: nn.Module, optim: OptimConfig) -> Part:
    return Part("backbone", backbone, lr=optim.backbone_lr)


def parameter_groups(parts: Sequence[Part], optim: OptimConfig) -> list[dict[str, Any]]:
    """The parts, each split into decayed parameters and (where decay_norms is off) undecayed 1-D ones.

    Every trainable parameter lands in exactly one group: that of the first part that has it. With selected_rows the
    class tables of the parts give the rows of their gradients from here on.
    """
    if optim.selected_rows:
        give_rows(table for part in parts for table in class_tables(part.module))
    groups: list[dict[str, Any]] = []
    taken: set[int] = set()
    for part in parts:
        trainable = [p for p in part.module.parameters() if p.requires_grad and id(p) not in taken]
        taken.update(map(id, trainable))
        plain = [p for p in trainable if p.ndim > 1 or optim.decay_norms]
        spared = [p for p in trainable if p.ndim <= 1 and not optim.decay_norms]
        decay = optim.weight_decay if part.weight_decay is None else part.weight_decay
        for kind, params, rate in (("decayed", plain, decay), ("undecayed", spared, 0.0)):
            if params:
                groups.append(
                    {"name": f"{part.name}, {kind}", "params": params, "lr_factor": part.lr, "weight_decay": rate}
                )
    return groups


def build_optimizer(groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Query2Label's, without the ineffective batch scaling of its lr) or SGD with momentum (Segmenter's)."""
    if optim.kind == "sgd":
        sgd = RowSGD if optim.selected_rows else torch.optim.SGD
        return sgd(groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    adamw = RowAdamW if optim.selected_rows else torch.optim.AdamW
    return adamw(groups, lr=optim.lr, weight_decay=optim.weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, optim: OptimConfig, step: int, steps: int) -> float:
    """Set every group's learning rate (and, for one_cycle with AdamW, beta1) for this step; gives the head's rate."""
    share = rate(optim, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = optim.lr * group["lr_factor"] * share
        if optim.schedule == "one_cycle" and "betas" in group:
            group["betas"] = (cycled_beta(optim, step, steps), group["betas"][1])
    return optim.lr * share


def rate(optim: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of step 0..steps-1 as a share of the peak.

    one_cycle: torch's OneCycleLR with its defaults (start 1/25 of the peak, cosine up over `warmup`, cosine down to
    1/10,000 of the start). poly: (1 - step/steps)^power with a floor, per step. cosine: linear warm-up, cosine to the
    floor.
    """
    floor = optim.min_lr / optim.lr if optim.lr else 0.0
    if optim.schedule == "one_cycle":
        return one_cycle(step, steps, optim.warmup, 1 / 25, 1.0, 1 / 25e4)
    if optim.schedule == "poly":
        return max((1 - step / steps) ** optim.poly_power * (1 - floor) + floor, floor)
    if optim.schedule == "cosine":
        warm = round(optim.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    return 1.0


def cycled_beta(optim: OptimConfig, step: int, steps: int) -> float:
    """beta1 falls from 0.95 to 0.85 while the rate rises, and comes back."""
    return one_cycle(step, steps, optim.warmup, 0.95, 0.85, 0.95)


def one_cycle(step: int, steps: int, warmup: float, start: float, peak: float, end: float) -> float:
    """Cosine from start to peak over the first `warmup` of the steps, cosine to end over the rest."""
    top = max(warmup * steps - 1, 0.0)
    if step <= top:
        return cosine(start, peak, step / top if top else 1.0)
    return cosine(peak, end, min(1.0, (step - top) / max(1.0, steps - 1 - top)))


def cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def clip_gradients(parameters: Iterable[nn.Parameter], optim: OptimConfig) -> float:
    """Gradient norm before clipping to optim.clip. A gradient that names its rows counts like the dense one."""
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    most = optim.clip if optim.clip is not None else math.inf
    rows, others = list[Tensor](), list[nn.Parameter]()
    for parameter in trained:
        assert parameter.grad is not None
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()  # a row may be there several times before
            rows.append(parameter.grad.values())
        else:
            others.append(parameter)
    norm = nn.utils.get_total_norm([*rows, *(other.grad for other in others if other.grad is not None)])
    nn.utils.clip_grads_with_norm_(others, most, norm)
    for values in rows:
        values.mul_((most / (norm + 1e-6)).clamp(max=1.0))
    return float(norm)
