"""Losses of the label classifier. Legend: B images, K labels."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.config import LabelLossConfig
from kappaseg_core.label_sample import LabelSample

Reduction = Literal["batch_mean", "mean"]


class AsymmetricLoss(nn.Module):
    """Binary cross-entropy that easy negatives weigh less in (Ridnik et al., "Asymmetric loss", ICCV 2021).

    With p = sigmoid(logit), and t = the probability given to what is true: t = p where the label is present,
    t = min(1, 1 - p + clip) where it is absent:

        loss = -(1 - t)^gamma log t        gamma = gamma_pos where present, gamma_neg where absent

    gamma_neg = gamma_pos = clip = 0 is binary cross-entropy.

    release (Query2Label, RankSeg): log max(t, 1e-5), whose gradient is exactly 0 where a logit is wrong by more than
    11.5; in ASL's own, 1e-8 under half precision gives NaN. ours: log t from log-sigmoids in at least fp32, the same
    wherever t > 1e-5, and without clip the gradient of a wrong logit stays whole at any size. (With clip, the formula
    itself lets go of absent labels that are surely present: the gradient falls like (1 - p) / clip.)

    focus_gradient: let the gradient flow through (1 - t)^gamma (RankSeg) or not (Query2Label's recipe).
    reduction: "batch_mean" = sum over labels, mean over images, so that the rate does not depend on K;
    "mean" = over both (RankSeg). Query2Label's sum is B x batch_mean, its "optimized" one 1000 x mean.

    forward: logits [B, K] of any float type, targets [B, K]: 1 present, 0 absent, -1 unknown (ignored) → scalar.
    Unknown labels stay in the denominator, which is thus the same for all workers and never 0.
    sample: the labels that the logits are of, [B, n], and their weights; targets are then still those of all K labels,
    over which "mean" goes as before.
    """

    def __init__(
        self,
        gamma_neg: float,
        gamma_pos: float,
        clip: float,
        *,
        focus_gradient: bool,
        reduction: Reduction,
    ) -> None:
        super().__init__()
        self.gamma_neg, self.gamma_pos = gamma_neg, gamma_pos
        self.log_clip = math.log(clip) if clip > 0 else -math.inf
        self.focus_gradient, self.reduction = focus_gradient, reduction

    @classmethod
    def of(cls, loss: LabelLossConfig) -> AsymmetricLoss:
        """The configured loss."""
        return cls(
            loss.gamma_neg, loss.gamma_pos, loss.clip, focus_gradient=loss.focus_gradient, reduction=loss.reduction
        )

    def forward(self, logits: Tensor, targets: Tensor, sample: LabelSample | None = None) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        divisor = targets.numel() if self.reduction == "mean" else len(targets)
        if sample is not None:
            targets = targets[:, sample.labels]
        present = targets > 0
        log_true = torch.where(present, F.logsigmoid(logits), self.log_absent(logits))
        loss = -log_true * self.focus(log_true, present)
        loss = torch.where(targets >= 0, loss, 0.0)
        return (loss if sample is None else loss * sample.weight).sum() / divisor

    def log_absent(self, logits: Tensor) -> Tensor:
        """log min(1, 1 - p + clip)."""
        shifted = torch.logaddexp(F.logsigmoid(-logits), logits.new_tensor(self.log_clip))
        return shifted.clamp(max=0)

    def focus(self, log_true: Tensor, present: Tensor) -> Tensor:
        """(1 - t)^gamma."""
        with torch.set_grad_enabled(self.focus_gradient and torch.is_grad_enabled()):
            doubt = -torch.expm1(log_true)
            doubt = doubt.clamp(min=torch.finfo(doubt.dtype).tiny)  # 0^gamma has no finite gradient below gamma = 1
            return doubt ** torch.where(present, self.gamma_pos, self.gamma_neg)


def binary_cross_entropy(*, reduction: Reduction = "batch_mean") -> AsymmetricLoss:
    """The same class with no asymmetry: every label weighs the same."""
    return AsymmetricLoss(0.0, 0.0, 0.0, focus_gradient=False, reduction=reduction)
