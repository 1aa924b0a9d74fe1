""" "2 × TransDec": Query2Label whose queries are the host's class embeddings (Table 6, He et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.config import refuse_below, refuse_no_share
from kappaseg_core.label_heads import Query2Label
from stage2_segmentation.branches import TokenHost, class_table, refuse_heads
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

    def __post_init__(self) -> None:
        refuse_below(0, self, "pooled")
        refuse_below(1, self, "layers", "heads", "ffn", "chunk")
        refuse_no_share(self, "dropout")


class DecoderBranch(nn.Module):
    """Labels look at the image one by one: cross-attention alone, linear in K.

    The segmentation branch goes on with the class embeddings as they are. release: an initialisation that runs over the
    whole head gives its linear layers (not the attention's packed input) a truncated normal of deviation 0.02; ours:
    Query2Label's own start (Xavier).
    """

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

    def forward(self, host: TokenHost, features: Tensor, classes: Tensor | None = None) -> Seen:
        head = self.query2label
        seen = F.adaptive_avg_pool2d(features, self.pooled) if self.pooled else features
        queries = host.cls_emb if classes is None else classes
        return Seen(features, head.score(seen, queries, head.weight, head.bias).float(), classes)

    def set_prior(self, frequency: Tensor) -> None:
        """Start from how common each label is: frequency f32 [K], the share of images that hold it."""
        self.query2label.set_prior(frequency)


def build(options: Options, host: TokenHost, *, num_classes: int, in_channels: int) -> DecoderBranch:
    """The branch for a host with class embeddings [K, D]."""
    width = class_table(host).shape[1]
    return DecoderBranch(options, num_classes, width, in_channels)
