"""Settings of stage two: training, evaluating and applying a segmentation network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kappaseg_core.config import (
    BackboneConfig,
    DataConfig,
    LabelLossConfig,
    LoopConfig,
    OptimConfig,
    load_config,
    refuse_below,
    refuse_no_share,
)
from kappaseg_core.errors import UserError

FEW = 25  # κ where none is given: the published value for the smallest of the paper's vocabularies


@dataclass(frozen=True)
class HostConfig:
    """The segmentation network on the backbone's map."""

    kind: str = "segmenter"
    """module of stage2_segmentation.hosts"""
    options: dict[str, Any] = field(default_factory=dict)
    """its settings (the module's Options dataclass), for example width, depth, rank_scale"""


@dataclass(frozen=True)
class SourceConfig:
    """Where the rankings come from."""

    train: str = "cache"
    """module of stage2_segmentation.sources used in training: cache, joint (the network's own label branch), oracle
    (ground truth), complete (all K labels), service (a ranking service)"""
    test: str | None = None
    """the same for evaluation; null = as in training. `complete` and then `oracle` is the paper's "GT (eval only)"."""
    kappa: int | None = 50
    """labels kept per image in training; null = 25, or all where there are fewer"""
    test_kappa: int | None = None
    """labels kept in evaluation; null = as in training"""
    missed: Literal["ignore", "force", "mix"] | None = None
    """pixels whose label the ranking missed, in training. ignore: left out of the loss (as published); force: their
    labels take the last ranks (ours); mix: they take random ranks of labels that are not there (ours); null = mix for
    `joint`, whose first rankings miss most labels, and ignore for the others"""
    fade: float | None = None
    """share of the training over which `force` and `mix` give way to `ignore`: for ever fewer images; null = never"""
    cache: str | None = None
    """directory of the label cache; null = OUT/labels"""
    url: str | None = None
    """address of the ranking service, for `service`"""
    service_cache: str | None = None
    """name of a cache of that service, which images are looked up in; null = it ranks them (not in training)"""

    @property
    def at_test(self) -> str:
        return self.test or self.train

    @property
    def treatment(self) -> str:
        """What becomes of missed labels: ignore, force or mix."""
        return self.missed or ("mix" if self.train == "joint" else "ignore")

    def kept(self, num_classes: int, *, at_test: bool = False) -> int:
        """κ for a vocabulary of that size."""
        wanted = self.test_kappa or self.kappa if at_test else self.kappa
        return min(FEW, num_classes) if wanted is None else wanted

    def __post_init__(self) -> None:
        refuse_below(1, self, "kappa", "test_kappa")
        if self.fade is not None and not 0 < self.fade <= 1:
            raise ValueError(f"fade = {self.fade}, wanted a share above 0, up to 1")
        if self.fade is not None and self.treatment == "ignore":
            raise ValueError(f"fade = {self.fade}, but missed labels are ignored throughout; set missed = force or mix")


@dataclass(frozen=True)
class BranchLossConfig(LabelLossConfig):
    gamma_neg: float = 0.0


@dataclass(frozen=True)
class LabelsConfig:
    """The label branch of the joint scheme, on the same backbone as the segmentation network."""

    head: str = "none"
    """module of stage2_segmentation.branches: encoder (1 × TransEnc), decoder (2 × TransDec), pooled (GAP + linear),
    group (ours: a query per group of labels), projected (1 × TransEnc for hosts without patch tokens: deeplabv3,
    upernet); none = a network that does not rank"""
    options: dict[str, Any] = field(default_factory=dict)
    """its settings (the module's Options dataclass), for example pooled and attend of `encoder`"""
    loss: BranchLossConfig = field(default_factory=BranchLossConfig)
    """the published runs use binary cross-entropy or the asymmetric loss with gamma_neg 2, and reduction `mean`"""
    weight: float = 0.05
    """of the label loss, beside 1 for the segmentation loss (published: 5 to 300 with reduction `mean` over K labels,
    which is 0.03 to 0.23 here)"""
    prior: bool = True
    """start from how common each label is in the training images, so that the first rankings are those of the frequency
    and not chance (ours; the release starts from random numbers)"""
    warm_up: float = 0.0
    """share of the training in which the label loss is alone, so that selection starts from a ranking (ours)"""
    lr: float = 1.0
    """factor on the learning rate of the branch"""
    weight_decay: float | None = None
    """of the branch; null = optim.weight_decay (the released recipes with a decay have 1e-4 here and 1e-6 elsewhere)"""

    def __post_init__(self) -> None:
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up = {self.warm_up}, wanted a share from 0, below 1")
        refuse_below(0, self, "weight", "lr", "weight_decay")


@dataclass(frozen=True)
class AugmentConfig:
    """What a training image goes through (the published order)."""

    short_side: int = 512
    """the image's shorter side before random scaling, in pixels"""
    scale: tuple[float, float] = (0.5, 2.0)
    """range of the random scale"""
    crop: int = 512
    """side of the square crop; smaller images are padded (0 in the image, IGNORE in the mask)"""
    max_share: float = 0.75
    """a crop is drawn again (up to ten times) while one label holds more than this share of its labelled pixels"""
    flip: float = 0.5
    photometric: bool = True
    """random brightness, contrast, saturation and hue"""

    def __post_init__(self) -> None:
        refuse_below(1, self, "short_side", "crop")
        refuse_no_share(self, "max_share", "flip")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale = {list(self.scale)}, wanted two numbers above 0, the smaller one first")


@dataclass(frozen=True)
class LossConfig:
    """Pixel-wise cross-entropy over the kept labels."""

    stride: int = 1
    """take every stride-th pixel of the label map (1 = all, as published)"""

    def __post_init__(self) -> None:
        refuse_below(1, self, "stride")


@dataclass(frozen=True)
class SegmentsConfig:
    """When a query becomes a segment, for networks that learn objects. Probabilities over κ labels are higher than over
    all K, for which the published values are: look at them again where κ is small."""

    score: float | None = None
    """probability that the label of a query has at least; null = 0.8"""
    overlap: float | None = None
    """share of a query's mask that it must own, others being stronger in the rest; null = 0.8"""
    least: float | None = None
    """mask probability that the pixels of a segment have at least; null = 0.5 (Mask2Former); MaskFormer: 0"""

    def __post_init__(self) -> None:
        refuse_no_share(self, "score", "overlap", "least")


@dataclass(frozen=True)
class InferenceConfig:
    """How an image of any size is segmented. One ranking per image serves all its windows, scales and flips."""

    mode: Literal["whole", "slide"] = "whole"
    short_side: int | None = 512
    """resize the image to this shorter side first; null = its own size"""
    window: int = 512
    """side of a sliding window, in pixels of the resized image"""
    stride: int = 512
    """distance of two windows"""
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    """average with the mirrored image"""
    segments: SegmentsConfig = field(default_factory=SegmentsConfig)

    def __post_init__(self) -> None:
        refuse_below(1, self, "short_side", "window")
        if self.mode == "slide" and not 1 <= self.stride <= self.window:
            raise ValueError(f"stride = {self.stride}, wanted 1 to window = {self.window}, or windows leave gaps")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales = {list(self.scales)}, wanted at least one, each above 0")


@dataclass(frozen=True)
class Stage2Config:
    """`kappaseg run-stage2 CONFIG`."""

    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    host: HostConfig = field(default_factory=HostConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    class_tokens: Literal["host", "backbone"] = "host"
    """where class tokens meet the image. host: in the mask transformer; backbone: already in the last block of a plain
    ViT (the release's "OCE")"""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    out: str = "runs/default"
    """output folder of the whole chain; this step writes OUT/stage2-NAME"""
    name: str | None = None
    """NAME of the run; null = the training source"""
    init: str | None = None
    """run directory of a network of the same classes and sizes: training starts from it; null = from backbone.weights,
    or from random numbers"""

    def __post_init__(self) -> None:
        if self.loss.stride // 2 >= self.augment.crop:
            raise ValueError(
                f"loss.stride = {self.loss.stride} takes no pixel of a crop of {self.augment.crop}; lower loss.stride"
            )
        if self.optim.selected_rows and self.source.train == "complete":
            raise ValueError(
                "optim.selected_rows = true, but source.train = complete selects all rows at every step; leave it out"
            )
        for name in ("train", "test"):
            if getattr(self.source, name) == "joint" and self.labels.head == "none":
                raise ValueError(
                    f"source.{name} = joint, but labels.head = none ranks nothing; set labels.head = encoder"
                )

    @property
    def run_name(self) -> str:
        if self.name:
            return f"stage2-{self.name}"
        source, words = self.source, [self.source.train]
        words += [str(source.test)] if source.test not in (None, source.train) else []
        words += ["labels"] if self.labels.head != "none" and source.train != "joint" else []
        return "-".join(["stage2", *words])


def joint_config(path: str | Path, settings: Sequence[tuple[str, str]]) -> Stage2Config:
    """A configuration of the joint scheme: the network ranks for itself, by an encoder branch if by no other.

    Raises UserError where the settings name another source.
    """
    if (source := dict(settings).get("source.train", "joint")) != "joint":
        raise UserError(f"--source.train {source}: run-joint trains on the network's own ranking; use run-stage2")
    if dict(settings).get("labels.head") == "none":
        raise UserError(
            "--labels.head none: a network without a label branch cannot rank; use encoder, projected, decoder, pooled "
            "or group"
        )
    known = load_config(Stage2Config, path, [*settings, ("source.train", "oracle"), ("source.test", "oracle")])
    branch = [("labels.head", "encoder")] if known.labels.head == "none" else []
    return load_config(Stage2Config, path, [*settings, *branch, ("source.train", "joint")])
