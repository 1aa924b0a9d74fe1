"""Query2Label: a query per label. Legend as in the package; n some of the K labels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kappaseg_core.class_rows import rows_of
from kappaseg_core.label_heads.pooled import log_odds
from kappaseg_core.label_heads.query_decoder import QueryDecoder
from kappaseg_core.precision import full_precision

#: Which decoder layers let labels attend to each other. In the first one all labels still hold the same (zero) content,
#: so its result is one constant for all of them, and with "none" and "first" every label is scored by itself.
LabelsAttend = Literal["none", "first", "not_first", "all"]


class Query2Label(QueryDecoder):
    """Labels ask the image for themselves (Liu et al., "Query2Label", 2021): post-norm transformer, group-wise linear.

    One query per label attends to the cells of the backbone's map; logit_k = ⟨W_k, h_k⟩ + b_k.
    forward: features [B, C, h, w], any h and w → logits f32 [B, K].

    Where labels do not attend to each other (`self_attention` "none", the published default, or "first"), a label's
    logit is the same whichever others are scored with it. So `chunk` labels can be scored at a time, with the same
    result; while training, the activations of a chunk are then recomputed in the backward pass, so that memory grows
    with `chunk` and not with K. And some labels can be scored alone (`logits_for`).

    Raises UserError for sizes that do not fit each other.
    """

    class_tables = ("queries", "weight", "bias")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        width: int,
        ffn: int,
        heads: int,
        encoder_layers: int,
        decoder_layers: int,
        self_attention: LabelsAttend = "none",
        project: bool,
        dropout: float,
        chunk: int | None,
    ) -> None:
        super().__init__(
            in_channels, width=width, ffn=ffn, heads=heads, encoder_layers=encoder_layers,
            attend=layers_that_attend(self_attention, decoder_layers), project=project, dropout=dropout, chunk=chunk,
        )  # fmt: skip
        self.queries = nn.Parameter(torch.randn(num_classes, width))
        self.weight = nn.Parameter(torch.empty(num_classes, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.empty(num_classes).uniform_(-(width**-0.5), width**-0.5))

    def forward(self, features: Tensor) -> Tensor:
        return self.scores_of(self.read(features), self.queries)

    def logits_for(self, features: Tensor, labels: Tensor) -> Tensor:
        """Logits f32 [B, n] of some labels only: labels i64 [n], or [B, n] for a list of its own per image.

        Equal to those columns of forward. Raises ValueError where labels attend to each other: they would differ.
        """
        return self.scores_of(self.read(features), self.queries, labels)

    def scores_of(self, memory: list[Tensor], queries: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits f32 [B, K] from what was read of the images, or [B, n] of `labels` (as in logits_for).

        queries: of all labels, [K, D], or [B, K, D] where every image has its own.
        """
        if labels is None:
            weight: Tensor = self.weight
            bias: Tensor = self.bias
        elif self.independent:
            queries, weight, bias = (rows_of(table, labels) for table in (queries, self.weight, self.bias))
        else:
            raise ValueError("logits of some labels depend on all others here; build with self_attention='none'")
        size = self.chunk or queries.shape[-2]
        chunks = zip(queries.split(size, -2), weight.split(size, -2), bias.split(size, -1), strict=True)
        return self.in_chunks(list(chunks), memory)

    def decode(self, queries: Tensor, weight: Tensor, bias: Tensor, *memory: Tensor) -> Tensor:
        """One chunk of labels → logits f32 [B, k]. weight [k, D] or [B, k, D], bias [k] or [B, k]."""
        content = self.answers(queries, memory)
        with full_precision(content.device):  # half-precision logits would make ties in a ranking
            hidden = self.norm(content.to(weight.dtype))
            return torch.einsum("...kd,...kd->...k", hidden.float(), weight.float()) + bias.float()

    @torch.no_grad()
    def set_prior(self, frequency: Tensor) -> None:
        """Start from how common each label is: frequency f32 [K], the share of images that hold it."""
        self.bias.copy_(log_odds(frequency))


def layers_that_attend(kind: LabelsAttend, layers: int) -> list[bool]:
    """For each decoder layer: do labels attend to each other there?"""
    choices = {"none": (False, False), "first": (True, False), "not_first": (False, True), "all": (True, True)}
    first, others = choices[kind]
    return [first] + [others] * (layers - 1) if layers > 0 else []
