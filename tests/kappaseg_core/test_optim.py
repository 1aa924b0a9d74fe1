"""Schedules against torch's own schedulers, and parameter groups that add up."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from kappaseg_core.config import OptimConfig
from kappaseg_core.optim import Part, backbone_part, build_optimizer, parameter_groups, rate, set_rate


def model() -> nn.ModuleDict:
    return nn.ModuleDict({"head": nn.Linear(3, 2), "backbone": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))})


def groups(optim: OptimConfig) -> list[dict]:
    return groups_of(model(), optim)


def groups_of(network: nn.ModuleDict, optim: OptimConfig) -> list[dict]:
    return parameter_groups([Part("head", network["head"]), backbone_part(network["backbone"], optim)], optim)


@pytest.mark.parametrize("steps", [12, 40])
def test_one_cycle_is_torchs(steps: int) -> None:
    optim = OptimConfig(lr=0.3, warmup=0.2)
    ours = build_optimizer(groups(optim), optim)
    theirs = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = OneCycleLR(theirs, 0.3, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        set_rate(ours, optim, step, steps)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-6)
        assert ours.param_groups[0]["betas"] == pytest.approx(theirs.param_groups[0]["betas"], rel=1e-6)
        theirs.step()
        if step + 1 < steps:
            schedule.step()


def test_poly_falls_from_the_peak_to_the_floor() -> None:
    optim = OptimConfig(lr=1e-3, schedule="poly", min_lr=1e-5, poly_power=0.9)
    rates = [1e-3 * rate(optim, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[50] == pytest.approx((1e-3 - 1e-5) * 0.5**0.9 + 1e-5)
    assert rates[100] == pytest.approx(1e-5)
    assert all(a > b for a, b in pairwise(rates))


def test_cosine_warms_up_and_ends_near_the_floor() -> None:
    optim = OptimConfig(lr=1.0, schedule="cosine", warmup=0.1, min_lr=0.01)
    assert rate(optim, 0, 100) == pytest.approx(0.1)
    assert rate(optim, 9, 100) == pytest.approx(1.0)
    assert rate(optim, 10, 100) == pytest.approx(1.0)
    assert rate(optim, 99, 100) == pytest.approx(0.01, abs=1e-3)


def test_groups_hold_every_trainable_parameter_once() -> None:
    network = model()
    network["backbone"][0].weight.requires_grad_(False)
    found = groups_of(network, OptimConfig(decay_norms=False, backbone_lr=0.1))
    params = [p for group in found for p in group["params"]]
    assert {id(p) for p in params} == {id(p) for p in network.parameters() if p.requires_grad}
    assert len(params) == len({id(p) for p in params})
    spared = next(g for g in found if g["name"] == "backbone, undecayed")
    assert spared["weight_decay"] == 0.0
    assert spared["lr_factor"] == 0.1


def test_a_part_has_its_own_rate_and_decay_and_shared_parameters_stay_with_the_first() -> None:
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    second.weight = first.weight
    parts = [Part("first", first), Part("second", second, lr=0.1, weight_decay=0.3)]
    one, two = parameter_groups(parts, OptimConfig(weight_decay=0.01))
    assert ([id(p) for p in one["params"]], one["lr_factor"], one["weight_decay"]) == ([id(first.weight)], 1.0, 0.01)
    assert ([id(p) for p in two["params"]], two["lr_factor"], two["weight_decay"]) == ([id(second.bias)], 0.1, 0.3)


def test_sgd_has_momentum_and_the_backbones_rate_is_scaled() -> None:
    optim = OptimConfig(kind="sgd", lr=0.1, momentum=0.8, schedule="constant", backbone_lr=0.5)
    optimizer = build_optimizer(groups(optim), optim)
    set_rate(optimizer, optim, 3, 10)
    rates = {group["name"].split(",")[0]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"head": 0.1, "backbone": 0.05}
    assert optimizer.param_groups[0]["momentum"] == 0.8
