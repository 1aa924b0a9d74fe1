"""Group decoding: one query for a group of labels. Legend as in the package; G groups, q the labels of the largest."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kappaseg_core.errors import UserError
from kappaseg_core.label_heads.pooled import log_odds
from kappaseg_core.label_heads.query_decoder import QueryDecoder
from kappaseg_core.precision import full_precision

#: Which labels share a query. index: neighbours in the list of classes. shuffled: drawn from a seed.
Grouping = Literal["index", "shuffled"]
GROUPS = 100  # where no other number is given: ML-Decoder's


class GroupDecoder(QueryDecoder):
    """G queries ask the image, and each answers for the labels of its group (Ridnik et al., "ML-Decoder", WACV 2023).

    logit_k = ⟨W_k, h_g(k)⟩ + b_k. forward: features [B, C, h, w] → logits f32 [B, K]. Attention and feed-forward part
    cost what G labels of Query2Label cost; only W grows with K. Labels of a group look at the same cells.

    release: contiguous groups of ⌈K/G⌉ labels, so that the last groups may be short or empty; queries that are not
    trained. ours: groups whose sizes differ by one at most, by `grouping`; queries that are trained.

    groups: None = 100, or K where there are fewer.   slots: i64 [K], where each label stands in W [G, q, D]; it is kept
    with the weights, so that a trained head does not depend on how a seed is drawn from. The places beyond the labels
    of a smaller group are not used.

    Raises UserError for sizes that do not fit each other, and for more groups than labels.
    """

    slots: Tensor

    def __init__(
        self, in_channels: int, num_classes: int, *, width: int, ffn: int, heads: int, decoder_layers: int,
        project: bool, dropout: float, chunk: int | None, groups: int | None, grouping: Grouping, group_seed: int,
    ) -> None:  # fmt: skip
        super().__init__(
            in_channels, width=width, ffn=ffn, heads=heads, encoder_layers=0, attend=[False] * decoder_layers,
            project=project, dropout=dropout, chunk=chunk,
        )  # fmt: skip
        groups = min(GROUPS, num_classes) if groups is None else groups
        if not 1 <= groups <= num_classes:
            raise UserError(f"head with {groups} groups, wanted 1 to the {num_classes} labels that there are")
        shape, bound = (groups, -(-num_classes // groups)), width**-0.5
        self.register_buffer("slots", slots_of(num_classes, groups, grouping, group_seed))
        self.queries = nn.Parameter(torch.randn(groups, width))
        self.weight = nn.Parameter(torch.empty(*shape, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def forward(self, features: Tensor) -> Tensor:
        size = self.chunk or len(self.queries)
        chunks = zip(self.queries.split(size), self.weight.split(size), self.bias.split(size), strict=True)
        return self.in_chunks(list(chunks), self.read(features)).flatten(1)[:, self.slots]

    def decode(self, queries: Tensor, weight: Tensor, bias: Tensor, *memory: Tensor) -> Tensor:
        """Some groups → logits f32 [B, g, q]. weight [g, q, D], bias [g, q]."""
        content = self.answers(queries, memory)
        with full_precision(content.device):
            hidden = self.norm(content.to(weight.dtype))
            return torch.einsum("bgd,gqd->bgq", hidden.float(), weight.float()) + bias.float()

    @torch.no_grad()
    def set_prior(self, frequency: Tensor) -> None:
        """Start from how common each label is: frequency f32 [K], the share of images that hold it."""
        self.bias.view(-1)[self.slots] = log_odds(frequency).to(self.bias)


def slots_of(num_classes: int, groups: int, grouping: Grouping, seed: int) -> Tensor:
    """i64 [K]: group · q + place within the group, for each label."""
    turn = torch.arange(num_classes)
    group = turn * groups // num_classes
    place = turn - (group * num_classes + groups - 1) // groups  # minus the first turn of that group
    slots = group * -(-num_classes // groups) + place
    if grouping == "index":
        return slots
    return slots[torch.randperm(num_classes, generator=torch.Generator().manual_seed(seed))]
