"""The learned scale per rank: how sharply pixels choose between the kept labels.

Legend: κ ranks that have parameters, n ranks at hand, q_k the score (cosine) of rank k.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kappaseg_core.precision import full_precision

Kind = Literal["shared", "rank", "layer_norm", "shared_norm"]

START = 10.0  # 1/τ at the start: cosines lie in [-1, 1], and with 1 the softmax over them would be flat


class RankScale(nn.Module):
    """Scores of the ranks → logits of the ranks.

    rank:       s_k · q_k, Eq. 3 of He et al. 2022 with s_k = 1/τ_k, rank-adaptive.
    shared:     s · q_k, one temperature for all ranks (rows "+MT+LS" and above of the paper's Table 1).
    layer_norm: w_k · (q_k - mean_k q) / std_k q + b_k: layer normalisation over the ranks, with its affine part.
    shared_norm: w · (q_k - mean_k q) / std_k q, the same with one temperature: what layer_norm is to be compared with.

    paper: Eq. 3, a temperature per rank and nothing else; release: layer normalisation over the ranks, whose weight is
    the only temperature there is, and whose index is the class where nothing is ranked; ours: all of them, layer_norm
    the default, as the published numbers were made with it.

    n may differ from κ, as when κ at test is not κ in training: the first n parameters are used, and ranks beyond κ
    take the last one's (the release cannot do this).
    unbiased: variance with n - 1 in the denominator, as in the released ground-truth head.
    no_object: the last score is that of "no object", which has no rank and, behind those of the κ ranks, parameters of
    its own; it is normalised with the others (as released for Mask2Former).
    """

    def __init__(
        self, kappa: int, kind: Kind = "layer_norm", *, unbiased: bool = False, eps: float = 1e-5,
        no_object: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kind, self.unbiased, self.eps, self.no_object = kind, unbiased, eps, no_object
        length = kappa + no_object if kind in ("rank", "layer_norm") else 1
        self.normed = kind in ("layer_norm", "shared_norm")
        self.weight = nn.Parameter(torch.full((length,), 1.0 if self.normed else START))
        self.bias = nn.Parameter(torch.zeros(length)) if kind == "layer_norm" else None

    def forward(self, scores: Tensor, valid: Tensor | None = None) -> Tensor:
        """scores [..., n] → f32 [..., n].

        valid: bool, broadcastable to scores; ranks that are padding, left out of mean and deviation. Their own values
        come out finite and mean nothing.
        """
        with full_precision(scores.device):
            scores = scores.float()
            if self.normed:
                scores = self.standardised(scores, valid)
            scaled = scores * self.for_ranks(self.weight, scores.shape[-1])
            return scaled if self.bias is None else scaled + self.for_ranks(self.bias, scores.shape[-1])

    def standardised(self, scores: Tensor, valid: Tensor | None) -> Tensor:
        """Mean 0 and variance 1 over the valid ranks. One rank alone is only centred."""
        if valid is None:
            counted, number = torch.ones_like(scores[..., :1]), torch.tensor(float(scores.shape[-1]))
        else:
            counted = valid.to(scores.dtype)
            number = counted.sum(-1, keepdim=True).clamp_min(1)
        centred = scores - (scores * counted).sum(-1, keepdim=True) / number
        freedom = (number - 1).clamp_min(1) if self.unbiased else number
        variance = (centred.square() * counted).sum(-1, keepdim=True) / freedom
        return centred * torch.rsqrt(variance + self.eps)

    def for_ranks(self, values: Tensor, ranks: int) -> Tensor:
        """The parameters of the first `ranks` ranks [ranks]; the last one repeated where there are not as many."""
        if self.no_object and len(values) > 1:
            return torch.cat([self.repeated(values[:-1], ranks - 1), values[-1:]])
        return self.repeated(values, ranks)

    def repeated(self, values: Tensor, ranks: int) -> Tensor:
        missing = ranks - len(values)
        return values[:ranks] if missing <= 0 else torch.cat([values, values[-1:].expand(missing)])
