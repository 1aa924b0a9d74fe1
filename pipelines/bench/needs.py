"""What a variant needs before it is run: its step on the "meta" device, where tensors have sizes and no values.

Memory is the bytes of the tensors that live at the same time. What kernels need inside is not seen, nor are the
smaller numbers of bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kappaseg_core.cost import Cost, Sizes, count
from kappaseg_core.live_memory import LiveMemory
from kappaseg_core.ranking import Ranking
from pipelines.bench import eomt
from pipelines.bench.learning import PRESENT
from pipelines.bench.steps import built, network
from pipelines.bench.variants import Variant
from pipelines.imagined_segments import imagined_segments
from stage2_segmentation import pixels

#: memory of a process with its libraries before it builds a network: resident, and of the GPU
LIBRARIES_MIB = {"cpu": 400, "cuda": 600}
#: strips are looked at so many times larger than they are: else they are most of the operations, and half a minute
COARSER = 4


@dataclass(frozen=True)
class Needs:
    """In MiB: what a process holds between two steps (`held`), and what a step adds to that at its largest moment."""

    held: float
    step: float

    @property
    def alone(self) -> float:
        """Of the one process that makes a step."""
        return self.held + self.step


def needs(variant: Variant) -> Needs:
    """One step is looked at, the first: what the optimiser makes in it counts as held and as made."""
    with Unvalued(), strips_as_on(variant.device), imagined_segments(PRESENT), LiveMemory() as live:
        step = built(replace(variant, device="meta"), lambda part: None)
        live.peak = before = live.bytes
        step()
    libraries = LIBRARIES_MIB["cpu" if variant.device == "cpu" else "cuda"]
    return Needs(live.bytes / 2**20 + libraries, (live.peak - before) / 2**20)


def flops(variant: Variant) -> int:
    """Of the matrix products, convolutions and attention products of one step's network, two for a multiplication
    and addition; in training three times as many (each product has two in the way back), but of a frozen backbone."""
    whole = cost(variant).macs
    fixed = cost(replace(variant, way="backbone")).macs if variant.config.backbone.is_frozen else 0
    return 2 * (whole + 2 * (whole - fixed) if variant.train else whole)


def cost(variant: Variant) -> Cost:
    """Parameters, and MACs for the images of one step in use: the network up to its logits, without the label map."""
    unvalued = replace(variant, device="meta", train=False)
    with torch.device("meta"):
        model: Any = eomt.network(unvalued) if variant.way == "eomt" else network(unvalued)
        images = torch.zeros(variant.images, 3, variant.size, variant.size)
        labels = torch.zeros(variant.images, variant.kappa or variant.classes, dtype=torch.int64)
    if variant.way == "eomt":
        return count(model, lambda: model(images))
    if variant.way == "backbone":
        return count(model.backbone, lambda: model.backbone(images))
    return count(model, lambda: model(images, Ranking(labels, labels.float(), labels.bool())))


class Unvalued(Sizes):
    """Also for programs that ask for a share, which then decides for the way that computes more, or for values, which
    are zeros (of a matching); and attention holds what its fused kernels hold."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__float__ and args[0].is_meta:
            return 1.0
        if func is Tensor.cpu and args[0].is_meta:
            return torch.zeros(args[0].shape, dtype=args[0].dtype, device="cpu")
        if func is F.scaled_dot_product_attention:
            queries, keys, values = args[:3]
            return torch.ops.aten._scaled_dot_product_flash_attention(queries, keys, values)[0]
        return super().__torch_function__(func, types, args, kwargs)


@contextmanager
def strips_as_on(device: str) -> Iterator[None]:
    """Strips on "meta" of about the size that they have on the device, for the time of the block."""
    pixels.STRIP["meta"] = COARSER * pixels.STRIP[device] if device in pixels.STRIP else pixels.STRIP_ELSEWHERE
    try:
        yield
    finally:
        del pixels.STRIP["meta"]
