"""No decoder at all: tokens of the kept labels join the last blocks of a plain ViT, in the manner of EoMT (Kerssies et
al., "Your ViT is Secretly an Image Segmentation Model", CVPR 2025).

Legend: B images, h w patches, P prefix tokens, N = P + h·w, K all labels, κ kept labels, D width of the ViT.

EoMT: 100 or 200 learned queries join the last blocks; of each come class logits over K + 1 and a mask; matching assigns
queries to segments, the losses are cross-entropy, binary cross-entropy and dice.
Ours: the κ labels of the ranking join instead, so that a token is its label. There are no spare queries, no class head,
no matching and no "no object", and the loss is the pixel-wise cross-entropy over κ ranks of the other hosts. Masks are
cosines with a scale per rank, not raw products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.backbones import MapShape, Wants
from kappaseg_core.backbones.plain_vit import Begun
from kappaseg_core.config import refuse_below
from kappaseg_core.errors import UserError
from kappaseg_core.precision import full_precision
from kappaseg_core.rank_scale import Kind, RankScale
from kappaseg_core.ranking import PADDING_LOGIT, Ranking
from stage2_segmentation.hosts.segmenter import kept_classes
from stage2_segmentation.structures import Auxiliary, Prediction, Seen

FINEST = 4  # pixels per cell of the masks, for patches of 8, 16 and 32 pixels
POWER = 0.9  # of the polynomial that anneals mask attention (as published)


@dataclass(frozen=True)
class Options:
    """How much of the backbone the labels see, and the masks."""

    blocks: int = 3
    """last blocks of the backbone that the labels join (EoMT: 3 for ViT-S and B, 4 for L, 5 for g)"""
    width: int | None = 256
    """channels of the masks (ours); null = the backbone's width, as in EoMT, which costs as much as half a decoder"""
    rank_scale: Kind = "layer_norm"
    """kappaseg_core.rank_scale: layer_norm, shared_norm, rank (Eq. 3), shared"""
    mask_attention: Literal["none", "annealed"] = "none"
    """annealed: in training, labels look at the patches of their own mask alone, less and less often (EoMT), and the
    masks before each block are trained too; none: labels look at all patches"""

    def __post_init__(self) -> None:
        refuse_below(1, self, "blocks", "width")


def wants(options: Options) -> Wants:
    return Wants(last_blocks=options.blocks)


class EncoderOnly(nn.Module):
    """Patches and the embeddings of the kept labels through the last blocks of a ViT; a mask per label by cosine.

    forward: images behind the first blocks (`seen.begun`), their ranking → rank_logits f32 [B, κ, s·h, s·w], where s
    cells make a patch's side. The κ class embeddings are gathered in rank order; they have no positions. Class tokens
    that a label branch has refined are taken instead; patches go on as the first blocks left them.
    """

    class_tables = ("cls_emb",)

    def __init__(self, options: Options, *, num_classes: int, shape: MapShape, kappa: int) -> None:
        super().__init__()
        depth, width = shape.channels, options.width or shape.channels
        doublings = max(1, int(math.log2(shape.stride / FINEST)))
        if shape.stride % 2**doublings:
            raise UserError(f"host.kind = encoder_only halves patches of {shape.stride} pixels, wanted an even size")
        self.cell, self.anneals = shape.stride // 2**doublings, options.mask_attention == "annealed"
        self.cls_emb = nn.Parameter(torch.randn(num_classes, depth))
        self.mask_head = nn.Sequential(
            nn.Linear(depth, depth), nn.GELU(), nn.Linear(depth, depth), nn.GELU(), nn.Linear(depth, width)
        )
        self.upscale = nn.Sequential(*(Doubled(width if step else depth, width) for step in range(doublings)))
        self.rank_scale = RankScale(kappa, options.rank_scale)

    def forward(self, seen: Seen, ranking: Ranking) -> Prediction:
        begun, auxiliary = seen.begun, []
        assert begun is not None
        tokens = begun.joined(kept_classes(self.cls_emb, seen.classes, ranking))
        everywhere = attend = seen_ranks(begun, ranking.valid)
        for number in range(len(begun.left)):
            if self.anneals and self.training:
                logits = self.masks(begun, tokens, ranking)
                auxiliary.append(Auxiliary(logits, self.cell, weight=1.0))
                share = masked_share(number, len(begun.left), seen.progress)
                attend = within_masks(begun, logits, share, everywhere) if share else everywhere
            tokens = begun.through(number, tokens, attend)
        return Prediction(self.masks(begun, tokens, ranking), tuple(auxiliary))

    def read(self, features: Tensor) -> Tensor:
        """[B, D, h, w] → patch tokens [B, h·w, D], row by row, for a label branch that shares the class embeddings."""
        return features.flatten(2).mT

    def masks(self, begun: Begun, tokens: Tensor, ranking: Ranking) -> Tensor:
        """rank_logits of tokens [B, N + κ, D] behind any of the last blocks."""
        normed = begun.norm(tokens)
        cells, labels = self.upscale(begun.map(normed)), self.mask_head(normed[:, begun.tokens.shape[1] :])
        grid, valid = cells.shape[-2:], ranking.valid[:, None]
        cells, labels = F.normalize(cells.flatten(2).mT.float(), dim=2), F.normalize(labels.float(), dim=2)
        with full_precision(cells.device):  # cosines in bf16 are only good to 0.4 %
            cosine = cells @ labels.mT
        logits: Tensor = self.rank_scale(cosine, valid)
        return logits.masked_fill(~valid, PADDING_LOGIT).mT.unflatten(2, grid)


class Doubled(nn.Module):
    """A map of twice the height and width: transposed convolution, GELU, depthwise convolution, norm (as in EoMT)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.smooth = nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs, bias=False)
        self.norm = LayerNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.norm(self.smooth(F.gelu(self.up(features))))
        return found


def seen_ranks(begun: Begun, valid: Tensor) -> Tensor | None:
    """What all tokens may look at, bool [B, 1, 1, N + κ]: everything but padding ranks; None where there are none."""
    if torch.compiler.is_exporting() or not bool(valid.all()):  # a traced network cannot ask for values
        return F.pad(valid, (begun.tokens.shape[1], 0), value=True)[:, None, None]
    return None


def within_masks(begun: Begun, rank_logits: Tensor, share: float, attend: Tensor | None) -> Tensor:
    """bool [B, 1, N + κ, N + κ]: a share of the labels, drawn anew, looks at the patches where it is the best one.

    EoMT: where a query's own mask is above one half. Here one label is the best of a patch, and a label that is so
    nowhere looks everywhere (as in Mask2Former, of whose masks some are empty, too).
    """
    images, kappa, total = *rank_logits.shape[:2], begun.tokens.shape[1] + rank_logits.shape[1]
    best = F.adaptive_avg_pool2d(rank_logits.detach(), begun.grid).argmax(1).flatten(1)
    own = best[:, None] == torch.arange(kappa, device=best.device)[:, None]
    free = torch.rand(images, kappa, 1, device=best.device) >= share
    allowed = torch.ones(images, total, total, dtype=torch.bool, device=best.device)
    first = begun.tokens.shape[1] - own.shape[2]
    allowed[:, -kappa:, first : first + own.shape[2]] = own | free | ~own.any(2, keepdim=True)
    return allowed[:, None] if attend is None else allowed[:, None] & attend


def masked_share(block: int, blocks: int, progress: float) -> float:
    """Share of the labels that are kept within their masks before a block, from 1 down to 0 (EoMT's schedule).

    The training is divided into blocks + 2 equal parts; block i anneals in part i + 1, by (1 - x)^0.9.
    """
    position = progress * (blocks + 2) - (block + 1)
    return 1.0 if position <= 0 else max(0.0, 1.0 - position) ** POWER


def build(options: Options, *, num_classes: int, maps: Sequence[MapShape], kappa: int) -> EncoderOnly:
    """The host for a plain ViT; its map is that of the patches."""
    return EncoderOnly(options, num_classes=num_classes, shape=maps[-1], kappa=kappa)
