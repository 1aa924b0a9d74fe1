"""Some of the labels instead of all of them, for one step of training. Legend: B images, K labels, n sampled ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelSample:
    """Labels whose weighted losses sum up, on average over draws, to the loss over all K.

    labels: i64 [n], ascending.   weight: f32 [n], 1 for a label that some image holds, above 1 for a drawn one.
    """

    labels: Tensor
    weight: Tensor


def draw_labels(targets: Tensor, negatives: int | None) -> LabelSample | None:
    """All labels that an image of the batch holds, and `negatives` of the N others; None = all K labels.

    targets: [B, K], 1 present, 0 absent, -1 unknown. The others are those that are absent somewhere and present
    nowhere: what is unknown in all images has no loss. Each is drawn with probability m/N, without replacement, and
    weighs N/m, so that the expected loss and its gradient are those over all labels, of each batch by itself: parts of
    an accumulated step and the batches of other workers may draw their own. Draws are from torch's generator.

    None where `negatives` is None or enough for all N: the loss is then computed over all labels, as without a sample.
    """
    if negatives is None:
        return None
    present = (targets > 0).any(0)
    others = ((targets == 0).any(0) & ~present).nonzero().flatten()
    if len(others) <= negatives:
        return None
    drawn = others[torch.randperm(len(others), device=others.device)[:negatives]]
    chosen = present.index_fill(0, drawn, True)
    labels = chosen.nonzero().flatten()
    return LabelSample(labels, torch.where(present[labels], 1.0, len(others) / negatives))
