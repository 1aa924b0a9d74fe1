"""Settings of stage one: training a classifier, and ranking images with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kappaseg_core.config import (
    BackboneConfig,
    DataConfig,
    LabelLossConfig,
    LoopConfig,
    OptimConfig,
    refuse_below,
)


@dataclass(frozen=True)
class HeadConfig:
    """The label head on the backbone's final map."""

    preset: Literal["rankseg", "official", "fast", "gap", "lse"] = "rankseg"
    """rankseg: our guess of the paper's slim head; official: Query2Label's; fast: a quarter of its cost;
    gap, lse: one linear layer with average or soft maximum pooling"""
    width: int | None = None
    """overrides the preset's width; null = the preset's"""
    ffn: int | None = None
    heads: int | None = None
    encoder_layers: int | None = None
    decoder_layers: int | None = None
    self_attention: Literal["none", "first", "not_first", "all"] | None = None
    """decoder layers in which labels attend to each other; null = none (as published)"""
    project: bool | None = None
    """a linear layer between the map and the head; null = where their widths differ"""
    dropout: float | None = None
    chunk: int | None = None
    """score the labels this many at a time (same result, bounded memory); null = all at once"""

    def overrides(self) -> dict[str, float]:
        """What differs from the preset."""
        return {k: v for k, v in vars(self).items() if k != "preset" and v is not None}


@dataclass(frozen=True)
class AugmentConfig:
    """What a training image goes through; the validation image is only resized and normalised."""

    image_size: int = 384
    """side of the square that every image is resized to, in pixels (aspect ratio is lost, as in Query2Label)"""
    crop: float = 1.0
    """smallest side of a random crop as a share of the image's; 1 = no crop. The targets are the labels of the crop."""
    flip: float = 0.0
    """probability of a horizontal flip (Query2Label: none)"""
    randaugment_ops: int = 2
    """RandAugment operations per image; 0 = off"""
    randaugment_magnitude: int = 9
    cutout: float = 0.5
    """probability of one square hole of up to half the side"""


@dataclass(frozen=True)
class SwinConfig(BackboneConfig):
    name: str = "swin_large_patch4_window12_384"


@dataclass(frozen=True)
class Stage1Config:
    """`kappaseg run-stage1 CONFIG`."""

    data: DataConfig = field(default_factory=DataConfig)
    backbone: SwinConfig = field(default_factory=SwinConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LabelLossConfig = field(default_factory=LabelLossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    out: str = "runs/default"
    """output folder of the whole chain; this step writes OUT/stage1"""
    init: str | None = None
    """run directory of a classifier of the same classes and sizes: training starts from its network; null = from
    backbone.weights, or from random numbers"""
    fold: tuple[int, int] | None = None
    """[i, n]: train without the images of fold i of n (set by `kappaseg rank --folds n`)"""


@dataclass(frozen=True)
class RankConfig:
    """`kappaseg rank CONFIG`: from a classifier to a label cache."""

    data: DataConfig = field(default_factory=DataConfig)
    out: str = "runs/default"
    """output folder of the chain; reads OUT/stage1, writes OUT/labels"""
    classifier: str | None = None
    """run directory of the classifier; null = OUT/stage1"""
    cache: str | None = None
    """where to write the cache; null = OUT/labels"""
    kappa: int = 256
    """ranks to store (all K where there are fewer); κ is chosen when reading"""
    folds: int = 0
    """0: training images are ranked by the classifier that saw them (in-sample). N ≥ 2: N classifiers are trained and
    every training image is ranked by the one that did not see it (out-of-fold)"""
    part_images: int = 1000
    """images per Parquet part; an interrupted ranking resumes at the first missing part"""
    batch_size: int = 16
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is faster and changes scores in the third digit"""
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.folds == 1 or self.folds < 0:
            raise ValueError(f"folds = {self.folds}, wanted 0 (in-sample) or at least 2")
        refuse_below(1, self, "kappa")
