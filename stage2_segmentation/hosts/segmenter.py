"""Segmenter's mask transformer over the kept labels (Strudel et al., "Segmenter", ICCV 2021; He et al. 2022, Sec. 3.3).

Legend: B images, C channels and h w cells of the backbone's map, P = h·w, K all labels, κ kept labels, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.backbones import MapShape
from kappaseg_core.class_rows import rows_of
from kappaseg_core.config import refuse_below, refuse_no_share
from kappaseg_core.errors import UserError
from kappaseg_core.precision import full_precision
from kappaseg_core.products import Linear
from kappaseg_core.rank_scale import Kind, RankScale
from kappaseg_core.ranking import PADDING_LOGIT, Ranking
from stage2_segmentation.hosts.transformer import Block
from stage2_segmentation.structures import Prediction, Seen


@dataclass(frozen=True)
class Options:
    """Sizes of the mask transformer; null = as published for the backbone's width."""

    width: int | None = None
    """null = the backbone's channels"""
    heads: int | None = None
    """null = width / 64"""
    ffn: int | None = None
    """hidden width of the feed-forward part; null = 4 × width"""
    depth: int = 2
    dropout: float = 0.1
    attention_dropout: float | None = None
    """of the attention weights; null = dropout (as published). With 0 the fused kernels of the CPU can be used"""
    rank_scale: Kind = "layer_norm"
    """kappaseg_core.rank_scale: layer_norm (as released), shared_norm, rank (Eq. 3), shared"""
    unbiased: bool = False
    """layer_norm with the unbiased variance, as in the released ground-truth head"""

    def __post_init__(self) -> None:
        refuse_below(1, self, "width", "heads", "ffn", "depth")
        refuse_no_share(self, "dropout", "attention_dropout")
        if self.unbiased and self.rank_scale in ("rank", "shared"):
            raise ValueError(f"unbiased = true, but rank_scale = {self.rank_scale} takes no variance; leave it out")


class Segmenter(nn.Module):
    """Patch tokens and the embeddings of the kept labels through one transformer; a mask per label by cosine.

    forward: what was seen of B images and their ranking → rank_logits f32 [B, κ, h, w]. Tokens that a label branch has
    refined are taken instead of the host's own.

    The κ class embeddings are gathered in rank order; no positions are added, so that rank matters in the rank scale
    alone. With the complete ranking (κ = K, in order of id) this is the plain Segmenter.
    """

    class_tables = ("cls_emb",)

    def __init__(self, options: Options, *, num_classes: int, shape: MapShape, kappa: int) -> None:
        super().__init__()
        self.cell = shape.stride
        width = options.width or shape.channels
        heads = options.heads or max(1, width // 64)
        if width % heads:
            raise UserError(f"host.options.width = {width}, wanted a multiple of its {heads} heads")
        ffn = options.ffn or 4 * width
        self.proj_dec = Linear(shape.channels, width)
        self.cls_emb = nn.Parameter(torch.empty(num_classes, width))
        self.blocks = nn.ModuleList(
            Block(width, heads, ffn, options.dropout, options.attention_dropout) for _ in range(options.depth)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.proj_patch = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.proj_classes = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.rank_scale = RankScale(kappa, options.rank_scale, unbiased=options.unbiased)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)
        self.apply(init_linear)

    def forward(self, seen: Seen, ranking: Ranking) -> Prediction:
        patches = self.read(seen.features) if seen.patches is None else seen.patches
        kept = kept_classes(self.cls_emb, seen.classes, ranking)
        return Prediction(self.masks(patches, kept, ranking, seen.features.shape[-2:]))

    def read(self, features: Tensor) -> Tensor:
        """[B, C, h, w] → patch tokens [B, P, D], row by row."""
        tokens: Tensor = self.proj_dec(features.flatten(2).mT)
        return tokens

    def masks(self, patches: Tensor, classes: Tensor, ranking: Ranking, grid: tuple[int, ...]) -> Tensor:
        """Patch tokens [B, P, D] and class tokens [B, κ, D] in rank order → rank_logits f32 [B, κ, h, w]."""
        count, valid = patches.shape[1], ranking.valid
        tokens, attend = torch.cat([patches, classes], dim=1), None
        if torch.compiler.is_exporting() or not bool(valid.all()):  # a traced network cannot ask for values
            attend = F.pad(valid, (count, 0), value=True)
        for block in self.blocks:
            tokens = block(tokens, attend)
        patches, classes = self.decoder_norm(tokens).split([count, classes.shape[1]], dim=1)
        # paper and release agree: the projections have no bias, and the L2 norms no epsilon worth the name
        patches = F.normalize((patches @ self.proj_patch).float(), dim=2)
        classes = F.normalize((classes @ self.proj_classes).float(), dim=2)
        with full_precision(patches.device):  # cosines in bf16 are only good to 0.4 %
            cosine = patches @ classes.mT
        logits: Tensor = self.rank_scale(cosine, valid[:, None])
        return logits.masked_fill(~valid[:, None], PADDING_LOGIT).mT.unflatten(2, grid)


def kept_classes(table: Tensor, refined: Tensor | None, ranking: Ranking) -> Tensor:
    """Class tokens [B, κ, D] in rank order: of a table [K, D], or of the images' own refined ones [B, K, D]."""
    return rows_of(table if refined is None else refined, ranking.labels)


def init_linear(module: nn.Module) -> None:
    """As published: linear weights from a truncated normal of deviation 0.02, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def build(options: Options, *, num_classes: int, maps: Sequence[MapShape], kappa: int) -> Segmenter:
    """The host for the last one of the backbone's maps."""
    return Segmenter(options, num_classes=num_classes, shape=maps[-1], kappa=kappa)
