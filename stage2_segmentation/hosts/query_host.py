"""What MaskFormer and Mask2Former share: queries that each predict a mask, and a label among the kept ones or none.

Their decoders are modules of transformers (Apache-2.0) with its names, run here, so that its weights need renaming
alone; how they are run, what is predicted of the queries and what that costs is this project's.

Legend: B images, C channels and h w cells of a map, K all labels, κ kept labels, L layers, Q queries, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.backbones import MapShape
from kappaseg_core.class_rows import rows_of
from kappaseg_core.config import refuse_below, refuse_no_share
from kappaseg_core.errors import UserError
from kappaseg_core.precision import full_precision
from kappaseg_core.rank_scale import RankScale
from kappaseg_core.ranking import PADDING_LOGIT, Ranking
from kappaseg_core.segments import Segments
from stage2_segmentation.hosts.feature_pyramid import pyramid_of
from stage2_segmentation.hosts.pixel_classifier import Scale
from stage2_segmentation.query_loss import LossRule, query_loss
from stage2_segmentation.structures import Decoded, QueryPrediction, Seen

MAPS = 4
GROUPS = 32  # of the group normalisations of both pixel decoders
LOOKED_AT = 3  # the layer behind which a label branch looks at the queries (as released)


class Settings(Protocol):
    """Settings that both hosts have."""

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def rank_scale(self) -> Scale: ...
    @property
    def norm_stages(self) -> bool: ...
    @property
    def labels_see(self) -> Literal["queries", "pixels"]: ...
    @property
    def target(self) -> Literal["labels", "objects"]: ...


def refuse_settings(options: Any) -> None:
    """Raise ValueError for values that no mask network can be built with."""
    names = ("queries", "width", "layers", "encoder_layers", "heads", "ffn", "encoder_ffn", "points")
    refuse_below(1, options, *(name for name in names if hasattr(options, name)))
    refuse_below(0, options, "class_weight", "mask_weight", "dice_weight")
    refuse_no_share(options, "no_object")
    if options.width % GROUPS:
        raise ValueError(f"width = {options.width}, wanted a multiple of {GROUPS}, the groups of its normalisations")
    if options.width % options.heads:
        raise ValueError(f"width = {options.width}, wanted a multiple of its {options.heads} heads")


def refuse_missing(kind: str) -> None:
    """Raise UserError where a package that the host is made of is not installed."""
    for package in ("transformers", "scipy"):
        if find_spec(package) is None:
            raise UserError(f"host.kind = {kind} needs {package}, which is missing; pip install 'kappaseg[hosts]'")


class QueryHost(nn.Module):
    """The queries of B images and their ranking → class logits [B, Q, κ + 1] and mask logits [B, Q, h, w].

    cell: side of a cell of the masks in pixels.   seen_channels: of what a label branch looks at.
    learns_objects: whether a segment of a thing is one object, or all pixels of a label are one segment.
    predicts_first: whether queries predict before the first layer as well.
    """

    predicts_first: bool
    pixel_decoder: Any
    transformer_module: Any

    def __init__(
        self, options: Settings, loss_rule: LossRule, *, num_classes: int, maps: Sequence[MapShape], kappa: int
    ) -> None:
        super().__init__()
        self.levels, self.shapes = pyramid_of(maps, norm_stages=options.norm_stages)
        self.cell, self.loss_rule = self.shapes[0].stride, loss_rule
        self.learns_objects = options.target == "objects"
        self.labels_see_queries = options.labels_see == "queries"
        self.seen_channels = options.width if self.labels_see_queries else maps[-1].channels
        self.classify = QueryClassifier(num_classes, options.width, kappa=kappa, scale=options.rank_scale)

    @property
    def cls_emb(self) -> nn.Parameter:
        """The rows [K, D] that queries are compared with; a label branch may share them."""
        return self.classify.cls_emb

    @property
    def called_apart(self) -> list[nn.Module]:
        """What `decode` calls, for kappaseg_core.compiling."""
        return [self.pixel_decoder, *self.transformer_module.decoder.layers]

    def decode(self, maps: Sequence[Tensor]) -> Decoded:
        """The backbone's maps [B, C_l, h_l, w_l] → the queries and their masks, before any label is kept.

        In evaluation of the last layer alone: the others exist for their losses.
        """
        levels: list[Tensor] = self.levels(maps)
        pixels, states = self.run(whole_cells(levels, [shape.stride for shape in self.shapes]))
        first = 0 if self.predicts_first else 1
        normed = [self.normed(state) for state in (states[first:] if self.training else states[-1:])]
        height, width = levels[0].shape[2:]
        masks = (product_of_masks(self.embedded(queries), pixels) for queries in normed)
        return Decoded(
            torch.stack(normed).float(), tuple(mask[..., :height, :width] for mask in masks),
            states[min(LOOKED_AT, len(states) - 1)].mT[..., None] if self.labels_see_queries else maps[-1],
        )  # fmt: skip

    def run(self, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Maps of whole cells → pixel embeddings [B, D, h, w], and the queries [B, Q, D] before the first layer and
        behind each."""
        raise NotImplementedError

    def normed(self, queries: Tensor) -> Tensor:
        """Queries [B, Q, D] as classes and masks are made from them."""
        normed: Tensor = self.transformer_module.decoder.layernorm(queries)
        return normed

    def embedded(self, queries: Tensor) -> Tensor:
        """The mask embeddings [B, Q, D] of normed queries."""
        raise NotImplementedError

    def forward(self, seen: Seen, ranking: Ranking) -> QueryPrediction:
        assert seen.decoded is not None
        logits = self.classify(seen.decoded.queries, ranking)
        layers = [QueryPrediction(*pair) for pair in zip(logits, seen.decoded.masks, strict=True)]
        return replace(layers[-1], auxiliary=tuple(layers[:-1]) if self.training else ())

    def loss(
        self, prediction: QueryPrediction, segments: Sequence[Segments], ranking: Ranking
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of all layers together; and figures to watch."""
        return query_loss(prediction, segments, ranking, cell=self.cell, rule=self.loss_rule)


class QueryClassifier(nn.Module):
    """Queries f32 [L, B, Q, D] and the ranking of B images → class logits f32 [L, B, Q, κ + 1].

    Of the labels at the ranks, the rows of a table, and of "no object", a row of its own, last. release: cosines, then
    one layer normalisation over κ + 1; the plain networks have a linear layer, which `scale = none` is.
    """

    class_tables = ("cls_emb", "cls_bias")

    def __init__(self, num_classes: int, width: int, *, kappa: int, scale: Scale) -> None:
        super().__init__()
        plain, bound = scale == "none", width**-0.5
        self.cls_emb = nn.Parameter(torch.empty(num_classes, width).uniform_(-bound, bound))
        self.no_object = nn.Parameter(torch.empty(1, width).uniform_(-bound, bound))
        self.cls_bias = nn.Parameter(torch.empty(num_classes).uniform_(-bound, bound)) if plain else None
        self.no_object_bias = nn.Parameter(torch.empty(1).uniform_(-bound, bound)) if plain else None
        self.rank_scale = None if scale == "none" else RankScale(kappa, scale, no_object=True)

    def forward(self, queries: Tensor, ranking: Ranking) -> Tensor:
        images = ranking.labels.shape[0]  # not len, which a tracer takes for a constant
        rows = torch.cat([rows_of(self.cls_emb, ranking.labels), self.no_object.expand(images, 1, -1)], 1).float()
        valid = F.pad(ranking.valid, (0, 1), value=True)[:, None]
        with full_precision(queries.device):
            if self.rank_scale is not None:
                cosine = F.normalize(queries.float(), dim=-1) @ F.normalize(rows, dim=-1).mT
                logits: Tensor = self.rank_scale(cosine, valid)
            else:
                assert self.cls_bias is not None and self.no_object_bias is not None
                bias = torch.cat(
                    [rows_of(self.cls_bias, ranking.labels), self.no_object_bias.expand(images, 1)], 1
                ).float()
                logits = queries.float() @ rows.mT + bias[:, None]
        return logits.masked_fill(~valid, PADDING_LOGIT)


def whole_cells(maps: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
    """Maps that all cover the area of the coarsest one, so that cells stay where they are in the image.

    Cells beyond the image's edge repeat those at it. (As published: the image is padded with the mean colour to
    multiples of 32, and the backbone sees that; the same at sides that are such multiples.)
    """
    height, width = (cells * strides[-1] for cells in maps[-1].shape[2:])
    return [
        F.pad(features, (0, width // stride - features.shape[3], 0, height // stride - features.shape[2]), "replicate")
        for features, stride in zip(maps, strides, strict=True)
    ]


def product_of_masks(embeddings: Tensor, pixels: Tensor) -> Tensor:
    """Mask logits f32 [B, Q, h, w] of mask embeddings [B, Q, D] and pixel embeddings [B, D, h, w]."""
    with full_precision(pixels.device):  # the sum over D channels in bf16 is only good to 0.4 %
        return (embeddings.float() @ pixels.float().flatten(2)).unflatten(2, pixels.shape[2:])


class Positions(nn.Module):
    """Sine positions of the cells of a map (Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020).

    In the place of transformers' own module, of the same values: that keeps its last result for every network of the
    process, and what was made in inference mode, or without numbers, is of no use to the next one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.waves = channels // 2

    def forward(
        self, shape: Sequence[int], device: torch.device, dtype: torch.dtype, mask: Tensor | None = None
    ) -> Tensor:
        """Of a map of that shape [B, C, h, w]. Half of the channels are of rows, half of columns."""
        images, _, height, width = shape
        rows, columns = self.along(height, device), self.along(width, device)
        both = [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)]
        return torch.cat(both, 2).permute(2, 0, 1).to(dtype).expand(images, -1, -1, -1)

    def along(self, cells: int, device: torch.device) -> Tensor:
        """[cells, C/2]: sines and cosines of wave lengths from 2π to 20,000 π in turn, once round in a side."""
        turn = torch.arange(1, cells + 1, device=device) / (cells + 1e-6) * (2 * math.pi)
        lengths = 10_000 ** (2 * (torch.arange(self.waves, device=device) // 2) / self.waves)
        angles = turn[:, None] / lengths
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], 2).flatten(1)


@torch.no_grad()
def start_convolutions(module: nn.Module) -> None:
    """As published: weights of convolutions from a uniform distribution by their inputs, no shift."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def start_matrices(module: nn.Module) -> None:
    """As published: Xavier's uniform distribution for all matrices."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
