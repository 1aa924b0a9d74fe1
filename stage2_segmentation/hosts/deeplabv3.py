"""DeepLabV3 over the kept labels (Chen et al., "Rethinking Atrous Convolution", 2017; sizes as He et al. 2022 used it).

On the last two stages of a ResNet whose stages keep a stride of 8:

    backbone: {name: resnet101c, options: {output_stride: 8}}

The published networks have three 3×3 convolutions where a plain ResNet-101 has one of 7×7 (ResNetV1c, timm's
resnet101c: 19,232 parameters more); dilations 2 and 4 of the last stages, and 1 and 2 of their first blocks, are the
same in both.

Legend: B images, C channels and h w cells of a map, D width, κ kept labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kappaseg_core.backbones import MapShape, Wants
from kappaseg_core.config import refuse_below, refuse_no_share
from kappaseg_core.ranking import Ranking
from stage2_segmentation.hosts.convolutions import convolution
from stage2_segmentation.hosts.pixel_classifier import AuxiliaryHead, PixelClassifier, Scale
from stage2_segmentation.structures import Prediction, Seen


@dataclass(frozen=True)
class Options:
    """Sizes of the head; the defaults are the published ones."""

    width: int = 512
    dilations: tuple[int, ...] = (1, 12, 24, 36)
    """of the parallel convolutions, 3×3 each; 1 is a 1×1 convolution"""
    dropout: float = 0.1
    rank_scale: Scale = "layer_norm"
    """kappaseg_core.rank_scale: layer_norm (as released), shared_norm, rank (Eq. 3), shared; none = the plain
    network's"""
    auxiliary: float = 0.4
    """weight of the loss of a head on the last stage but one, in training; 0 = without"""
    auxiliary_width: int = 256

    def __post_init__(self) -> None:
        refuse_below(1, self, "width", "auxiliary_width")
        refuse_below(0, self, "auxiliary")
        refuse_no_share(self, "dropout")
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"dilations = {list(self.dilations)}, wanted at least one, each 1 or more")


def wants(options: Options) -> Wants:
    """The last stage, and the one before for the auxiliary head."""
    return Wants(maps=2)


class DeepLabV3(nn.Module):
    """What was seen of B images and their ranking → rank_logits f32 [B, κ, h, w], in cells of the last map's stride."""

    def __init__(self, options: Options, *, num_classes: int, maps: Sequence[MapShape], kappa: int) -> None:
        super().__init__()
        self.cell = maps[-1].stride
        self.aspp = Aspp(maps[-1].channels, options.width, options.dilations)
        self.classify = PixelClassifier(
            num_classes, options.width, kappa=kappa, scale=options.rank_scale, dropout=options.dropout
        )
        self.auxiliary = (
            AuxiliaryHead(
                maps[0], num_classes, kappa=kappa, width=options.auxiliary_width, weight=options.auxiliary,
                dropout=options.dropout,
            ) if options.auxiliary else None
        )  # fmt: skip

    @property
    def cls_emb(self) -> nn.Parameter:
        """The rows [K, D] that cells are compared with; a label branch may share them."""
        return self.classify.cls_emb

    def forward(self, seen: Seen, ranking: Ranking) -> Prediction:
        logits = self.classify(self.aspp(seen.features), ranking)
        return Prediction(logits, () if self.auxiliary is None else self.auxiliary(seen.maps[0], ranking))


class Aspp(nn.Module):
    """[B, C, h, w] → [B, D, h, w]: convolutions of several dilations and the mean of the image, side by side, then a
    3×3 convolution (torchvision's ends in a 1×1 one)."""

    def __init__(self, inputs: int, width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.image = convolution(inputs, width)
        self.branches = nn.ModuleList(
            convolution(inputs, width, side=1 if dilation == 1 else 3, dilation=dilation) for dilation in dilations
        )
        self.bottleneck = convolution((1 + len(dilations)) * width, width, side=3)

    def forward(self, features: Tensor) -> Tensor:
        image = self.image(features.mean((2, 3), keepdim=True)).expand(-1, -1, *features.shape[2:])
        out: Tensor = self.bottleneck(torch.cat([image, *(branch(features) for branch in self.branches)], dim=1))
        return out


def build(options: Options, *, num_classes: int, maps: Sequence[MapShape], kappa: int) -> DeepLabV3:
    return DeepLabV3(options, num_classes=num_classes, maps=maps, kappa=kappa)
