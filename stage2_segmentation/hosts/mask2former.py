"""Mask2Former over the kept labels (Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation",
CVPR 2022), its decoders those of transformers.

On four stages of a backbone, or four blocks of a plain ViT. Deformable attention over three maps makes pixel
embeddings; queries look at one of these maps in turn, each inside its own mask of the layer before.

Legend: B images, C channels and h w cells of a map, Q queries, D width, κ kept labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.backbones import MapShape, Wants
from kappaseg_core.precision import full_precision
from stage2_segmentation.hosts.pixel_classifier import Scale
from stage2_segmentation.hosts.query_host import (
    MAPS,
    Positions,
    QueryHost,
    product_of_masks,
    refuse_missing,
    refuse_settings,
    start_convolutions,
    start_matrices,
)
from stage2_segmentation.mask_losses import PointMasks
from stage2_segmentation.query_loss import LossRule


@dataclass(frozen=True)
class Options:
    """Sizes and losses; the defaults are the published ones."""

    queries: int = 100
    width: int = 256
    """of queries, maps and masks"""
    encoder_layers: int = 6
    """of deformable attention, which make the maps"""
    encoder_ffn: int = 1024
    layers: int = 9
    heads: int = 8
    ffn: int = 2048
    norm_stages: bool = True
    """layer normalisation of every stage but the last, which the backbone normalises itself (as published for Swin; for
    ResNets set it false)"""
    rank_scale: Scale = "layer_norm"
    """kappaseg_core.rank_scale, over κ ranks and "no object": layer_norm (as released), shared_norm, rank (Eq. 3),
    shared; none = the plain network's linear layer"""
    labels_see: Literal["queries", "pixels"] = "queries"
    """what a label branch looks at: the queries behind the third layer (as released; pooled has to be 0), or the
    backbone's last map"""
    target: Literal["labels", "objects"] = "labels"
    """what a query learns. labels: all pixels of a label; objects: one object where the label is a thing"""
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object: float = 0.1
    """weight of "no object" in the class loss"""
    points: int = 12544
    """of a mask, in its loss and in matching"""

    def __post_init__(self) -> None:
        refuse_settings(self)


def wants(options: Options) -> Wants:
    return Wants(maps=MAPS)


class Mask2Former(QueryHost):
    """What was seen of B images and their ranking → class and mask logits of Q queries, in cells of the finest map."""

    predicts_first = True

    def __init__(self, options: Options, *, num_classes: int, maps: Sequence[MapShape], kappa: int) -> None:
        rule = LossRule(
            options.class_weight, options.mask_weight, options.dice_weight, options.no_object,
            PointMasks(options.points),
        )  # fmt: skip
        super().__init__(options, rule, num_classes=num_classes, maps=maps, kappa=kappa)
        from transformers.models.mask2former import modeling_mask2former as parts  # takes seconds to import

        config = decoder_config(options, [shape.stride for shape in self.shapes])
        self.heads = options.heads
        pixel_decoder: Any = parts.Mask2FormerPixelDecoder(config, [shape.channels for shape in self.shapes])
        self.positions = pixel_decoder.position_embedding = Positions(options.width)
        self.pixel_decoder, self.transformer_module = (
            pixel_decoder,
            parts.Mask2FormerTransformerModule(options.width, config),
        )
        self.start()

    def start(self) -> None:
        """From random numbers as published (transformers draws some of them from other distributions)."""
        pixel_decoder = self.pixel_decoder
        start_convolutions(pixel_decoder)
        start_matrices(pixel_decoder.input_projections)
        start_matrices(pixel_decoder.encoder)
        shape = pixel_decoder.level_embed.shape  # transformers makes it on the CPU, whatever device is asked for
        pixel_decoder.level_embed = nn.Parameter(torch.randn(shape))
        for layer in pixel_decoder.encoder.layers:
            start_deformable(layer.self_attn)
        start_matrices(self.transformer_module.decoder.layers)

    def run(self, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        with full_precision(maps[0].device):  # as published: in half precision it samples other places
            found = self.pixel_decoder([features.float() for features in maps])
        pixels, module = found.mask_features, self.transformer_module
        memory, places, shrunk = [], [], []
        for number, cells in enumerate(found.multi_scale_features):
            projected = module.input_projections[number](cells).flatten(2)
            memory.append((projected + module.level_embed.weight[number][:, None]).permute(2, 0, 1))
            places.append(self.positions(cells.shape, cells.device, cells.dtype).flatten(2).permute(2, 0, 1))
            shrunk.append(F.interpolate(pixels.detach(), cells.shape[2:], mode="bilinear"))
        asked, first = (
            table.weight[:, None].repeat(1, pixels.shape[0], 1)
            for table in (module.queries_embedder, module.queries_features)
        )
        states = [first]
        for number, layer in enumerate(module.decoder.layers):
            level = number % len(memory)
            hidden = self.hidden(states[-1], shrunk[level])
            states.append(
                layer(
                    states[-1], level, None, places, asked, memory,
                    encoder_attention_mask=hidden, output_attentions=False,
                )[0]
            )  # fmt: skip
        return pixels, [state.transpose(0, 1) for state in states]

    @torch.no_grad()
    def hidden(self, states: Tensor, pixels: Tensor) -> Tensor:
        """The cells that no head of a query looks at, bool [B · heads, Q, h·w]: those outside its mask, if it has any.

        states: queries [Q, B, D].   pixels: pixel embeddings [B, D, h, w], made as small as the map looked at. Products
        are linear, so that shrinking the pixels instead of the masks (as published) gives the same for D maps, not Q.
        """
        logits = product_of_masks(self.embedded(self.normed(states.transpose(0, 1))), pixels).flatten(2)
        outside = logits < 0
        outside &= ~outside.all(2, keepdim=True)
        return outside.repeat_interleave(self.heads, 0)

    def embedded(self, queries: Tensor) -> Tensor:
        embedded: Tensor = self.transformer_module.decoder.mask_predictor.mask_embedder(queries)
        return embedded


def decoder_config(options: Options, strides: Sequence[int]) -> Any:
    """For transformers' modules. Without dropout, as published: theirs leaves out whole layers, too."""
    from transformers import Mask2FormerConfig

    return Mask2FormerConfig(
        feature_size=options.width, mask_feature_size=options.width, hidden_dim=options.width,
        encoder_layers=options.encoder_layers, encoder_feedforward_dim=options.encoder_ffn,
        decoder_layers=options.layers + 1, num_attention_heads=options.heads, dim_feedforward=options.ffn,
        num_queries=options.queries, dropout=0.0, feature_strides=list(strides), common_stride=strides[0],
    )  # fmt: skip


@torch.no_grad()
def start_deformable(attention: Any) -> None:
    """As published (Zhu et al., "Deformable DETR", ICLR 2021): each head looks into a direction of its own, each of its
    points one cell further, all with equal weights."""
    heads, levels, points = attention.n_heads, attention.n_levels, attention.n_points
    angles = torch.arange(heads) * (2 * math.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], 1)
    directions = directions / directions.abs().amax(1, keepdim=True)
    steps = torch.arange(1, points + 1)[:, None]
    offsets = (directions[:, None, None] * steps).expand(-1, levels, -1, -1)
    attention.sampling_offsets.bias.copy_(offsets.reshape(-1))
    for parameter in (attention.sampling_offsets.weight, *attention.attention_weights.parameters()):
        nn.init.zeros_(parameter)
    for linear in (attention.value_proj, attention.output_proj):
        nn.init.zeros_(linear.bias)


def build(options: Options, *, num_classes: int, maps: Sequence[MapShape], kappa: int) -> nn.Module:
    """Raises UserError where transformers is not installed."""
    refuse_missing("mask2former")
    return Mask2Former(options, num_classes=num_classes, maps=maps, kappa=kappa)
