""" "2 × TransDec": Query2Label whose queries are the host's class embeddings (Table 6, He et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.config import refuse_below, refuse_no_share
from kappaseg_core.label_heads import LabelHead, Query2Label, build_head
from kappaseg_core.label_heads.shortlist import check_shortlist, merged, picked
from stage2_segmentation.branches import ClassHost, class_table, refuse_heads
from stage2_segmentation.hosts.segmenter import init_linear
from stage2_segmentation.structures import Seen


@dataclass(frozen=True)
class Options:
    """Sizes of the decoder; the defaults are the released ones. Its width is the host's."""

    pooled: int = 16
    """the map is averaged to pooled × pooled cells for the labels to look at; 0 = all cells"""
    layers: int = 2
    heads: int = 8
    ffn: int = 2048
    dropout: float = 0.1
    chunk: int | None = None
    """score the labels this many at a time (same result, bounded memory); null = all at once"""
    shortlist: int | None = None
    """a linear layer that is trained along picks this many labels of an image, and these alone are scored for the
    ranking (ours); null = all labels are"""
    shortlist_by: Literal["gap", "lse"] = "gap"
    """how that layer pools: the mean, or a soft maximum over the cells, which costs as much for every cell"""
    shortlist_weight: float = 1.0
    """of the loss of the layer that picks, beside that of the decoder"""

    def __post_init__(self) -> None:
        refuse_below(0, self, "pooled", "shortlist_weight")
        refuse_below(1, self, "layers", "heads", "ffn", "chunk", "shortlist")
        refuse_no_share(self, "dropout")


class DecoderBranch(nn.Module):
    """Labels look at the image one by one: cross-attention alone, linear in K.

    The segmentation branch goes on with the class embeddings as they are. release: an initialisation that runs over the
    whole head gives its linear layers (not the attention's packed input) a truncated normal of deviation 0.02; ours:
    Query2Label's own start (Xavier).

    Training ranks as inference does. Where not all labels are learnt from, or a short-list is ranked, the ranking is a
    pass of its own without gradient (choosing labels has none anyway), so that a step with both costs what the sampled
    and the picked labels cost, whatever K is.
    """

    samples_labels = True
    shares_classes = True

    def __init__(self, options: Options, num_classes: int, width: int, in_channels: int) -> None:
        super().__init__()
        refuse_heads(options.heads, width)
        self.pooled = options.pooled
        self.query2label = Query2Label(
            in_channels, num_classes, width=width, ffn=options.ffn, heads=options.heads, encoder_layers=0,
            decoder_layers=options.layers, project=True, dropout=options.dropout, chunk=options.chunk,
        )  # fmt: skip
        del self.query2label.queries  # the host's class embeddings are asked instead
        self.query2label.project.apply(init_linear)
        self.first: LabelHead | None = None
        if options.shortlist is not None:
            check_shortlist(options.shortlist, num_classes, self.query2label)
            self.first = build_head(options.shortlist_by, in_channels, num_classes)
            self.shortlist, self.weight = options.shortlist, options.shortlist_weight

    def forward(
        self, host: ClassHost, features: Tensor, classes: Tensor | None = None, labels: Tensor | None = None
    ) -> Seen:
        queries = host.cls_emb if classes is None else classes
        cells = F.adaptive_avg_pool2d(features, self.pooled) if self.pooled else features
        memory = self.query2label.read(cells)
        first = None if self.first is None else self.first(cells)
        learnt = None
        if labels is not None or (self.training and first is not None):
            learnt = self.query2label.scores_of(memory, queries, labels)
        with torch.set_grad_enabled(torch.is_grad_enabled() and learnt is None):
            ranked = self.ranked(memory, queries, first)
        supervised = ((self.weight, first),) if self.training and first is not None else ()
        return Seen(features, ranked, classes, learnt_logits=learnt, supervised=supervised)

    def ranked(self, memory: list[Tensor], queries: Tensor, first: Tensor | None) -> Tensor:
        """The logits f32 [B, K] that labels are ranked by."""
        if first is None:
            return self.query2label.scores_of(memory, queries)
        labels = picked(first, self.shortlist)
        return merged(first, labels, self.query2label.scores_of(memory, queries, labels))

    def set_prior(self, frequency: Tensor) -> None:
        """Start from how common each label is: frequency f32 [K], the share of images that hold it."""
        self.query2label.set_prior(frequency)
        if self.first is not None:
            self.first.set_prior(frequency)


def build(options: Options, host: ClassHost, *, num_classes: int, in_channels: int) -> DecoderBranch:
    """The branch for a host with class embeddings [K, D]."""
    width = class_table(host).shape[1]
    return DecoderBranch(options, num_classes, width, in_channels)
