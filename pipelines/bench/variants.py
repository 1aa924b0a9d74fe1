"""What is compared: the ways to compute one network, for some K, in training and in use.

Legend: K all labels, κ kept labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from kappaseg_core.config import to_plain
from kappaseg_core.errors import UserError
from stage2_segmentation.config import HostConfig, Stage2Config

#: ours: as this project runs it.   strips: the same without the kernel for GPUs.   plain: fused attention, but
#: upsampling and loss, or arg-max, as published.   published: all as published.   backbone: nothing behind it.
#: eomt: another network on a backbone of the same sizes (pipelines/bench/eomt.py); host.options are then its own
Computation = Literal["ours", "strips", "plain", "published", "backbone", "eomt"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Way:
    """keeps: whether pixels are classified among κ labels, and not among all K.   gpu: whether there only.
    training: whether it is a way to train, too."""

    title: str
    way: Computation
    keeps: bool = True
    gpu: bool = False
    training: bool = True


#: as --variants names them, the published network first: what ratios are to
WAYS = {
    "published": Way("published", "published", keeps=False),
    "scatter": Way("kept labels, published", "published", training=False),
    "all": Way("all labels, ours", "ours", keeps=False),
    "plain": Way("kept labels, plain", "plain"),
    "ours": Way("kept labels, ours", "ours"),
    "strips": Way("kept labels, ours, no kernel", "strips", gpu=True),
    "backbone": Way("backbone alone", "backbone"),
}

#: hosts whose queries predict masks: nobody published other ways of computing them, and they have no kernel
MASK_NETWORKS = ("maskformer", "mask2former")
MASK_WAYS = ("all", "ours", "backbone")

#: short names of backbones
BACKBONES = {
    "vit-t": "vit_tiny_patch16_384", "vit-s": "vit_small_patch16_384", "vit-b": "vit_base_patch16_384",
    "vit-l": "vit_large_patch16_384", "swin-t": "swin_tiny_patch4_window7_224",
    "swin-s": "swin_small_patch4_window7_224", "swin-b": "swin_base_patch4_window12_384",
    "swin-l": "swin_large_patch4_window12_384",
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """What one process computes. kappa: labels kept; None = all.   images: of a step, `size` pixels a side.

    config: the network and its optimiser; what it says of data, length and precision is not used.
    """

    name: str
    config: Stage2Config
    classes: int
    kappa: int | None
    train: bool
    way: Computation = "ours"
    precision: Precision = "fp32"
    images: int = 1
    size: int = 512
    device: str = "cpu"

    def plain(self) -> dict[str, Any]:
        """As result files hold it."""
        return {"backbone": self.config.backbone.name} | {
            name: value for name, value in to_plain(self).items() if name != "config"
        }


def plain_config(backbone: str, **optim: Any) -> Stage2Config:
    """Segmenter on a backbone of timm, all of it trained. Its attention has no dropout on the weights, so that the
    fused kernels of CPUs can be used; the published way has it (see `steps.network`)."""
    base = Stage2Config(host=HostConfig(options={"attention_dropout": 0.0}))
    return replace(
        base, backbone=replace(base.backbone, name=backbone, frozen=False), optim=replace(base.optim, **optim)
    )


def variant(way: str, config: Stage2Config, classes: int, kappa: int, *, train: bool, **rest: Any) -> Variant:
    """One of WAYS. rest: further fields of a Variant."""
    chosen = WAYS[way]
    name = chosen.title + (", bf16" if rest.get("precision") == "bf16" else "")
    return Variant(name, config, classes, kappa if chosen.keeps else None, train, chosen.way, **rest)


def variants(
    config: Stage2Config, ways: Sequence[str], classes: Sequence[int], kappa: int, *, train: bool, **rest: Any
) -> Iterator[Variant]:
    """Each way for each K. What does not depend on K is measured for the largest alone."""
    for way in ways:
        if train and not WAYS[way].training:
            continue
        for count in [max(classes)] if way == "backbone" else classes:
            yield variant(way, config, count, kappa, train=train, **rest)


def known_ways(names: Sequence[str] | None, device: str, host: str = "segmenter") -> list[str]:
    """The ways to measure: those named, or all that device and host have. Raises UserError for others."""
    there = MASK_WAYS if host in MASK_NETWORKS else tuple(WAYS)
    if names is None:
        return [name for name, way in WAYS.items() if name in there and (not way.gpu or device != "cpu")]
    for name in names:
        if name not in there:
            raise UserError(f"--variants {name}: {host} is not computed in that way; name some of {', '.join(there)}")
        if WAYS[name].gpu and device == "cpu":
            raise UserError(f"--variants {name} is what a GPU does without its kernel; leave it out with --device cpu")
    return [name for name in WAYS if name in names]
