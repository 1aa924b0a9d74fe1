"""Settings of stage one: training a classifier, and ranking images with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

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

    preset: Literal["rankseg", "official", "fast", "gap", "lse", "group"] = "rankseg"
    """rankseg: our guess of the paper's slim head; official: Query2Label's; fast: a quarter of its cost;
    gap, lse: one linear layer with average or soft maximum pooling; group: a query per group of labels (ML-Decoder)"""
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
    """score the labels (group: the groups) this many at a time (same result, bounded memory); null = all at once"""
    groups: int | None = None
    """preset group: how many groups; null = 100, or one per label where there are fewer"""
    grouping: Literal["index", "shuffled"] | None = None
    """preset group: which labels share a query. index: neighbours in the list of classes; shuffled: drawn from
    group_seed; null = index"""
    group_seed: int | None = None
    """preset group, shuffled; null = 0"""
    shortlist: int | None = None
    """at inference, a linear layer that is trained along picks this many labels of an image, and the head scores these
    alone; null = the head scores all labels (as published)"""
    shortlist_by: Literal["gap", "lse"] | None = None
    """the layer that picks; null = gap. lse finds labels that fill few cells, and costs as much for every cell"""
    shortlist_weight: float | None = None
    """of the loss of the layer that picks, beside 1 for the head's; null = 1"""

    def __post_init__(self) -> None:
        refuse_below(1, self, "chunk", "groups", "shortlist")
        refuse_below(0, self, "group_seed", "shortlist_weight")
        if self.preset != "group":
            refuse_given(self, "groups", "grouping", "group_seed", without="preset group")
        if self.shortlist is None:
            refuse_given(self, "shortlist_by", "shortlist_weight", without="a shortlist")
        elif self.labels_attend or self.preset in ("gap", "lse", "group"):
            raise ValueError(f"shortlist = {self.shortlist}, but {self.together}; set shortlist null")
        if self.group_seed is not None and self.grouping != "shuffled":
            raise ValueError(f"group_seed = {self.group_seed}, but only grouping = shuffled draws from it")

    @property
    def labels_attend(self) -> bool:
        """Whether a label's score depends on which others are scored with it."""
        return self.self_attention in ("not_first", "all")

    @property
    def together(self) -> str:
        """Why some labels alone cannot be scored, or need not be."""
        if self.labels_attend:
            return f"with self_attention = {self.self_attention} labels depend on each other"
        return f"preset = {self.preset} " + ("has a query per group" if self.preset == "group" else "is linear")

    def overrides(self) -> dict[str, Any]:
        """What differs from the preset."""
        return {k: v for k, v in vars(self).items() if k != "preset" and v is not None}


def refuse_given(config: object, *names: str, without: str) -> None:
    """Raise ValueError for the first of these settings that is not null."""
    for name in names:
        if (value := getattr(config, name)) is not None:
            raise ValueError(f"{name} = {value} does nothing without {without}; leave it out")


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

    def __post_init__(self) -> None:
        if self.optim.selected_rows and self.loss.negatives is None:
            raise ValueError(
                "optim.selected_rows = true, but loss.negatives = null learns all labels at every step; leave it out, "
                "or set loss.negatives"
            )
        if self.loss.negatives is not None and (self.head.labels_attend or self.head.preset == "group"):
            raise ValueError(f"loss.negatives = {self.loss.negatives}, but {self.head.together}; set it null")


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
