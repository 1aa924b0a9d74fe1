"""The least time that a step can take: what the machine does when all it does is multiply matrices, or copy.

Both rates are measured here and now. The floor is the larger of two times: operations of the network at the rate of a
large matrix product in the same precision; and what any program has to move at the rate of a large copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from pipelines.bench.needs import flops
from pipelines.bench.steps import network
from pipelines.bench.variants import Variant

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: side of the matrices and bytes of the copy: large enough that starting costs nothing
SIDES, BYTES = {"cpu": 1024, "cuda": 8192}, {"cpu": 2**26, "cuda": 2**30}
REPEATS = 20


@dataclass(frozen=True)
class Rates:
    """flops: precision → operations a second.   bandwidth: bytes a second, read and written."""

    flops: dict[str, float]
    bandwidth: float


def rates(device: str, precisions: Sequence[str]) -> Rates:
    """What the device reaches, the best of several times."""
    place = torch.device(device)
    side, size = SIDES[place.type], BYTES[place.type]
    found = {}
    for precision in precisions:
        left, right = (torch.randn(side, side, device=place).to(TYPES[precision]) for _ in range(2))
        found[precision] = 2 * side**3 / fastest(partial(torch.matmul, left, right), place)
    origin, copy = (torch.ones(size, dtype=torch.uint8, device=place) for _ in range(2))
    return Rates(found, 2 * size / fastest(partial(copy.copy_, origin), place))


def fastest(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(REPEATS):
        wait(device)
        started = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - started)
    return min(times)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def floor_seconds(variant: Variant, measured: Rates) -> float:
    """The least seconds of a step."""
    return max(flops(variant) / measured.flops[variant.precision], moved(variant) / measured.bandwidth)


def moved(variant: Variant) -> int:
    """Bytes that a step has to read or write whatever else it does: fp32 weights, images, and the label map (i64).

    In training weights are read in both directions and written, gradients written and read, and each number that the
    optimiser keeps is read and written.
    """
    with torch.device("meta"):
        model: nn.Module = network(replace(variant, device="meta"))
    if variant.way == "backbone":
        model = model.get_submodule("backbone")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    pixels = variant.images * variant.size**2
    if not variant.train:
        return 4 * (trained + frozen) + pixels * (3 * 4 + 8)
    moments = 1 if variant.config.optim.kind == "sgd" else 2
    return 4 * (trained * (5 + 2 * moments) + frozen) + pixels * (3 * 4 + 8)
