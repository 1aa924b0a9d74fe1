"""How many labels an image needs: κ per image with a bound on what selection loses (ours, not the paper's).

Conformal risk control (Angelopoulos, Bates, Fisch, Lei, Schuster, "Conformal Risk Control", ICLR 2024,
arXiv 2208.02814). On n calibration images, let R̂(λ) = 1/n Σ L_i(λ) be the mean loss of the label sets S_λ, which grow
with λ, where 0 ≤ L_i ≤ 1 never rises. Then

    λ̂ = inf {λ : n/(n+1) R̂(λ) + 1/(n+1) ≤ α},  that is  R̂(λ̂) ≤ ((n+1) α - 1) / n,   gives   E[L_{n+1}(λ̂)] ≤ α.

The promise is an average over calibration sets and test images: one calibration set in four may well end above α. It
holds where calibration and test images are exchangeable (drawn alike, for example one split shuffled and cut in two)
and none of them has trained ranker or network; it ends where the scenes change. Widely copied code accepts
R̂ ≤ (n+1)/n α - 1/(n+1); the 1/(n+1) has to be 1/n. R̂ is a step function, so λ̂ is found among its steps: root finders
may stop on the wrong side of one.

Legend: N images, K all labels, κ stored ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import Ranking

#: What is lost of an image when labels are left out. pixel: share of its labelled pixels whose label is not kept;
#: label: share of its labels that are not kept. Both are 0 for an image without labels.
Loss = Literal["pixel", "label"]

#: How the label sets grow. threshold: all labels with at least that score, so that κ differs between images;
#: rank: the same number of labels for every image.
Family = Literal["threshold", "rank"]

ROUNDING = 1e-12  # of a mean of n sums; decimal fractions such as 0.1 are not exact either


@dataclass(frozen=True)
class Calibration:
    """The labels to keep: of the first `kappa` ranks those with a score of at least `threshold`, and always one.

    alpha: the share that may be lost.   images: n.   risk: mean loss of the calibration images, R̂.
    bound: n/(n+1) R̂ + 1/(n+1), at most alpha unless capped.   mean_kappa: labels kept per calibration image.
    capped: even all stored ranks lose too much. Then all are kept and nothing is promised. (Where fewer than K ranks
    are stored the promise also needs the true loss at that cap to be below alpha, which no calibration can show.)
    """

    alpha: float
    threshold: float
    kappa: int
    images: int
    risk: float
    bound: float
    mean_kappa: float
    capped: bool
    loss: str
    family: str

    def keep(self, ranking: Ranking) -> Ranking:
        """What stays of a ranking."""
        return keep_above(ranking.top(self.kappa), self.threshold)


def calibrate(
    ranking: Ranking, pixels: Tensor, *, alpha: float, loss: Loss = "pixel", family: Family = "threshold"
) -> Calibration:
    """The fewest labels of a family of label sets that lose at most the share alpha of a new image, on average.

    ranking: of the N calibration images, with as many ranks as are stored.   pixels: i64 [N, K], labelled pixels of
    every label (metrics.label_pixels).
    Raises UserError for alpha outside 0..1, and where N is too small for it: (N+1) α ≥ 1 is needed.
    """
    check_images(len(ranking), alpha)
    images = len(ranking)
    values, risks = risk_steps(ranking, pixels, loss=loss, family=family)
    meets = (risks <= ((images + 1) * alpha - 1) / images + ROUNDING).nonzero()
    capped = len(meets) == 0
    step = len(values) - 1 if capped else int(meets[0])
    threshold, kappa = 0.0, ranking.kappa
    if family == "rank":
        kappa = int(-values[step])
    elif not capped:
        threshold = float(values[step])
    risk, kept = float(risks[step]), keep_above(ranking.top(kappa), threshold)
    return Calibration(
        alpha=alpha, threshold=threshold, kappa=kappa, images=images, risk=risk,
        bound=(images * risk + 1) / (images + 1), mean_kappa=float(kept.valid.sum()) / images, capped=capped,
        loss=loss, family=family,
    )  # fmt: skip


def keep_above(ranking: Ranking, threshold: float) -> Ranking:
    """The ranks with a score of at least `threshold`, and the first one in any case; the rest becomes padding.

    Columns at the end that are padding for all images are cut off (one column stays).
    """
    valid = ranking.valid & (ranking.scores >= threshold)
    valid[:, :1] = ranking.valid[:, :1]
    kappa = max(1, int(valid.sum(1).max())) if len(ranking) else ranking.kappa
    return Ranking(ranking.labels * valid, ranking.scores * valid, valid).top(kappa)


def lost_share(ranking: Ranking, pixels: Tensor, *, loss: Loss = "pixel") -> Tensor:
    """What each image loses by its ranking: f64 [N] in 0..1 (pixels: i64 [N, K])."""
    return lost_by_rank(ranking, pixels, loss)[:, -1]


def lost_by_rank(ranking: Ranking, pixels: Tensor, loss: Loss) -> Tensor:
    """Loss f64 [N, κ] of every image when its ranks up to and including this one are kept."""
    if loss not in get_args(Loss):
        raise UserError(f"loss = {loss!r}, wanted {' or '.join(get_args(Loss))}")
    weight = pixels if loss == "pixel" else (pixels > 0).long()
    total = weight.sum(1, keepdim=True)
    kept = (weight.gather(1, ranking.labels) * ranking.valid).cumsum(1)
    return (total - kept).double() / total.clamp(min=1)


def risk_steps(ranking: Ranking, pixels: Tensor, *, loss: Loss, family: Family) -> tuple[Tensor, Tensor]:
    """Every value at which the mean loss can change, from high to low, and the mean loss there, both f64 [steps].

    threshold: the scores, from 1 (the first rank alone, and others of score 1).   rank: minus the number of ranks.
    One sort: what a rank saves is counted at its value, and what has the same value enters together.
    """
    lost = lost_by_rank(ranking, pixels, loss)
    start, entry = entry_values(ranking, family)
    values, order = torch.cat([start, entry[:, 1:].flatten()]).sort(descending=True)
    saved = torch.cat([torch.zeros(1, dtype=torch.float64), (lost[:, :-1] - lost[:, 1:]).flatten()])
    risks = lost[:, 0].mean() - saved[order].cumsum(0) / len(lost)
    last = torch.ones_like(values, dtype=torch.bool)
    last[:-1] = values[1:] != values[:-1]
    return values[last], risks[last].clamp(min=0.0)


def entry_values(ranking: Ranking, family: Family) -> tuple[Tensor, Tensor]:
    """The value of the smallest label sets, f64 [1], and that at which each rank enters, f64 [N, κ]."""
    if family not in get_args(Family):
        raise UserError(f"family = {family!r}, wanted {' or '.join(get_args(Family))}")
    entry = ranking.scores.double()
    if family == "rank":
        entry = -torch.arange(1.0, ranking.kappa + 1, dtype=torch.float64).expand_as(entry)
    return torch.tensor([1.0 if family == "threshold" else -1.0], dtype=torch.float64), entry


def check_images(images: int, alpha: float) -> None:
    """Raise UserError where no set of labels could be promised."""
    if not 0 < alpha < 1:
        raise UserError(f"alpha = {alpha}, wanted a share above 0 and below 1, for example 0.05")
    if (images + 1) * alpha < 1 - ROUNDING:
        needed = math.ceil(1 / alpha - 1e-9) - 1
        raise UserError(
            f"{images} calibration images cannot promise alpha = {alpha:g}, wanted at least {needed}; "
            f"give more images, or an alpha of at least {1 / (images + 1):.2g}"
        )
