"""A short-list: a linear layer picks S labels of an image, a query head scores these alone.

Legend as in the package; S the labels picked. Cost: K · C for the layer, and the query head's for S labels, not K.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kappaseg_core.errors import UserError
from kappaseg_core.label_heads.pooled import PooledLinear
from kappaseg_core.label_heads.query2label import Query2Label

#: in logits: a hundredth of the odds. Scores, which are rounded to half precision, tell it apart from -12 to 2.9; where
#: the lowest picked logit is beyond, a label that was not picked may have the same score, and equal ones go by id
MARGIN = 0.01


class Shortlisted(nn.Module):
    """forward: features [B, C, h, w] → logits f32 [B, K]: of the picked labels exactly those of `then`, see `merged`.

    Both are trained on the same features, each with a loss of its own; `weight` is that of the first one's, beside 1.

    Raises UserError where `first` is not linear, `then` cannot score some labels alone, or nothing would be left out.
    """

    def __init__(self, first: Any, then: Any, size: int, *, num_classes: int, weight: float) -> None:
        super().__init__()
        if not isinstance(first, PooledLinear):
            raise UserError("head shortlist_by has to be a linear head: gap or lse")
        if not isinstance(then, Query2Label):
            raise UserError("head shortlist picks for heads with a query per label: rankseg, official or fast")
        check_shortlist(size, num_classes, then)
        self.first, self.then, self.size, self.weight = first, then, size, weight

    def forward(self, features: Tensor) -> Tensor:
        first: Tensor = self.first(features)
        labels = picked(first, self.size)
        return merged(first, labels, self.then.logits_for(features, labels))

    def set_prior(self, frequency: Tensor) -> None:
        """Start from how common each label is: frequency f32 [K], the share of images that hold it."""
        self.first.set_prior(frequency)
        self.then.set_prior(frequency)


def picked(first: Tensor, size: int) -> Tensor:
    """The S labels i64 [B, S] with the highest of logits [B, K]; equal ones in order of id."""
    return torch.sort(first, dim=1, descending=True, stable=True).indices[:, :size]


def merged(first: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
    """Logits f32 [B, K] that rank the picked labels, by their own logits, before all others.

    first: f32 [B, K], the linear layer's.   labels, logits: [B, S] of those picked.

    The others keep the order of the linear layer: all of an image are lowered by the same amount, so far that each is
    below the lowest picked one by MARGIN, and never raised. So what is stored, cut at a threshold or read as a
    probability is the query head's wherever a label was picked, and no other label seems likelier than it was there.
    """
    most = logits.amin(1, keepdim=True) - MARGIN
    others = first.scatter(1, labels, -torch.inf)
    excess = (others.amax(1, keepdim=True) - most).clamp(min=0)
    return torch.minimum(first - excess, most).scatter(1, labels, logits)  # minimum: a difference is rounded


def check_shortlist(size: int, num_classes: int, head: Query2Label) -> None:
    """Raise UserError for a short-list that picks nothing, everything, or for labels that attend to each other."""
    if not 1 <= size < num_classes:
        raise UserError(
            f"head shortlist {size} of {num_classes} labels, wanted 1 to {num_classes - 1}; null scores all of them"
        )
    if not head.independent:
        raise UserError(f"head shortlist {size} with labels that attend to each other; leave one of the two away")
