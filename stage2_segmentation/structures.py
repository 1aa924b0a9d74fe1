"""What flows through a segmentation network: what is seen of images, and what a host predicts.

Legend: B images, C channels, h w cells of a map, P = h·w, K all labels, κ kept labels, D the host's width, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kappaseg_core.precision import full_precision
from kappaseg_core.ranking import PADDING_LOGIT

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
    maps: all maps that the host wants, each [B, C_l, h_l, w_l]; the last one is `features`. None behind `decoded`.
    begun: the images behind the first blocks of a plain ViT, for a host that runs the last ones; None for others.
    decoded: what the queries of a mask network made of the maps, for a host with `decode`; None for others.
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
    decoded: Decoded | None = None
    progress: float = 1.0


@dataclass(frozen=True)
class Decoded:
    """Queries behind the decoder of a mask network, which knows nothing of labels: it runs before any is kept.

    queries: f32 [L, B, Q, D], behind each of L layers, as class logits are made from them; the last layer counts.
    masks: of each of these layers, mask logits f32 [B, Q, h, w] in cells of the host's `cell` pixels.
    looked_at: [B, C, h', w'], what a label branch sees of the images.
    """

    queries: Tensor
    masks: tuple[Tensor, ...]
    looked_at: Tensor


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


@dataclass(frozen=True)
class NearestPrediction:
    """Pixels and labels as points of one space, and how they are compared in training (hosts/nearest.py).

    cells: f32 [B, D, h, w], in cells of the host's `cell` pixels.   rows: f32 [B, κ, D], of the ranks.
    valid: bool [B, κ].   nearest, scale, margin: see the host's Options.
    """

    cells: Tensor
    rows: Tensor
    valid: Tensor
    nearest: int
    scale: float
    margin: float
    auxiliary: tuple[Auxiliary, ...] = ()

    @property
    def rank_logits(self) -> Tensor:
        """f32 [B, κ, h, w], as of a Prediction: scale · (2⟨x, c⟩ - ‖c‖²), which is -scale · ‖x - c‖² but for a number
        that is the same for all ranks. It is linear in x; so the largest one of a pixel, between cells too, is that of
        the label nearest to it."""
        with full_precision(self.cells.device):
            products = torch.einsum("bkd,bdhw->bkhw", self.rows, self.cells)
            logits = self.scale * (2 * products - self.rows.square().sum(2)[..., None, None])
        return logits.masked_fill(~self.valid[..., None, None], PADDING_LOGIT)


@dataclass(frozen=True)
class QueryPrediction:
    """What a mask network predicts: Q masks, each with a label or none.

    class_logits: f32 [B, Q, κ + 1], of the ranks, padding ranks with PADDING_LOGIT, and of "no object" last.
    mask_logits: f32 [B, Q, h, w], in cells of the host's `cell` pixels.
    auxiliary: the same of the layers before, each of whose losses counts as much, in training alone.
    """

    class_logits: Tensor
    mask_logits: Tensor
    auxiliary: tuple[QueryPrediction, ...] = ()


#: what a host may predict
AnyPrediction = Prediction | NearestPrediction | QueryPrediction
