"""Group decoding (Ridnik et al., "ML-Decoder", WACV 2023): a query for a group of labels; ours as a label branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.config import refuse_below, refuse_no_share
from kappaseg_core.label_heads.group import GroupDecoder, Grouping
from stage2_segmentation.structures import Seen


@dataclass(frozen=True)
class Options:
    """Sizes of the decoder; its defaults are ML-Decoder's, but for the width, which is the map's."""

    pooled: int = 16
    """the map is averaged to pooled × pooled cells for the queries to look at; 0 = all cells"""
    groups: int | None = None
    """null = 100, or one per label where there are fewer"""
    grouping: Grouping = "index"
    """which labels share a query. index: neighbours in the list of classes; shuffled: drawn from group_seed"""
    group_seed: int = 0
    layers: int = 1
    heads: int = 8
    ffn: int = 2048
    dropout: float = 0.1
    chunk: int | None = None
    """decode the groups this many at a time (same result, bounded memory); null = all at once"""

    def __post_init__(self) -> None:
        refuse_below(0, self, "pooled", "group_seed")
        refuse_below(1, self, "groups", "layers", "heads", "ffn", "chunk")
        refuse_no_share(self, "dropout")


class GroupBranch(nn.Module):
    """Labels by the queries of their groups: what grows with K is one linear row. It shares nothing with the host."""

    samples_labels = False  # a sample would hold a label of nearly every group

    def __init__(self, options: Options, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.pooled = options.pooled
        self.decoder = GroupDecoder(
            in_channels, num_classes, width=in_channels, ffn=options.ffn, heads=options.heads,
            decoder_layers=options.layers, project=False, dropout=options.dropout, chunk=options.chunk,
            groups=options.groups, grouping=options.grouping, group_seed=options.group_seed,
        )  # fmt: skip

    def forward(self, host: Any, features: Tensor, classes: Tensor | None = None) -> Seen:
        seen = F.adaptive_avg_pool2d(features, self.pooled) if self.pooled else features
        return Seen(features, self.decoder(seen), classes)

    def set_prior(self, frequency: Tensor) -> None:
        """Start from how common each label is: frequency f32 [K], the share of images that hold it."""
        self.decoder.set_prior(frequency)


def build(options: Options, host: Any, *, num_classes: int, in_channels: int) -> GroupBranch:
    """The branch for a map of `in_channels` channels."""
    return GroupBranch(options, num_classes, in_channels)
