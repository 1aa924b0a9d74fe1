"""What flows through a segmentation network: what is seen of images, and what a host predicts.

Legend: B images, C channels, h w cells of a map, P = h·w, K all labels, κ kept labels, D the host's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:  # timm takes seconds to import, and most hosts do not need it
    from kappaseg_core.backbones.plain_vit import Begun


@dataclass(frozen=True)
class Seen:
    """What a network makes of images before it knows which of their labels are kept.

    features: [B, C, h, w], the backbone's last map; what the label branch looks at.
    label_logits: f32 [B, K] of the label branch, by which labels are ranked; None without one.
    classes: [B, K, D], class tokens of these images that take the place of the host's embeddings; None: those.
    patches: [B, P, D], patch tokens that take the place of what the host reads from the features; None: those.
    learnt_logits: f32 [B, n], of the labels that the step asked for, or [B, K]: what the label loss is computed on
    where the ranking was made without gradient; None: label_logits.
    supervised: (weight, f32 [B, K]): further logits that learn the same labels, in training.
    maps: all maps that the host wants, each [B, C_l, h_l, w_l]; the last one is `features`.
    begun: the images behind the first blocks of a plain ViT, for a host that runs the last ones; None for others.
    progress: share of the training that lies behind, for a host that changes over time; 1 = it is over.
    """

    features: Tensor
    label_logits: Tensor | None = None
    classes: Tensor | None = None
    patches: Tensor | None = None
    learnt_logits: Tensor | None = None
    supervised: tuple[tuple[float, Tensor], ...] = ()
    maps: tuple[Tensor, ...] = ()
    begun: Begun | None = None
    progress: float = 1.0


@dataclass(frozen=True)
class Auxiliary:
    """Further logits f32 [B, κ, h, w], in cells of `cell` pixels, whose loss counts `weight` times in training."""

    rank_logits: Tensor
    cell: int
    weight: float


@dataclass(frozen=True)
class Prediction:
    """rank_logits: f32 [B, κ, h, w], in cells of the host's `cell` pixels.   auxiliary: in training alone."""

    rank_logits: Tensor
    auxiliary: tuple[Auxiliary, ...] = ()
