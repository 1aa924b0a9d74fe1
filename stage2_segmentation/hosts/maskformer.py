"""MaskFormer over the kept labels (Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic
Segmentation", NeurIPS 2021), its decoders those of transformers.

On four stages of a backbone, or four blocks of a plain ViT. A feature pyramid makes pixel embeddings; queries look at
the last map in the manner of DETR; a query's mask is the product of the two.

Legend: B images, C channels and h w cells of a map, Q queries, D width, κ kept labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kappaseg_core.backbones import MapShape, Wants
from kappaseg_core.config import refuse_no_share
from stage2_segmentation.hosts.pixel_classifier import Scale
from stage2_segmentation.hosts.query_host import (
    MAPS,
    Positions,
    QueryHost,
    refuse_missing,
    refuse_settings,
    start_convolutions,
    start_matrices,
)
from stage2_segmentation.mask_losses import WholeMasks
from stage2_segmentation.query_loss import LossRule


@dataclass(frozen=True)
class Options:
    """Sizes and losses; the defaults are the published ones."""

    queries: int = 100
    width: int = 256
    """of queries, pyramid and masks"""
    layers: int = 6
    heads: int = 8
    ffn: int = 2048
    dropout: float = 0.1
    norm_stages: bool = True
    """layer normalisation of every stage but the last, which the backbone normalises itself (as published for Swin; for
    ResNets set it false)"""
    rank_scale: Scale = "layer_norm"
    """kappaseg_core.rank_scale, over κ ranks and "no object": layer_norm (as released for Mask2Former), shared_norm,
    rank (Eq. 3), shared; none = the plain network's linear layer"""
    labels_see: Literal["queries", "pixels"] = "queries"
    """what a label branch looks at: the queries behind the third layer (as released for Mask2Former; pooled has to be
    0), or the backbone's last map"""
    target: Literal["labels", "objects"] = "labels"
    """what a query learns. labels: all pixels of a label; objects: one object where the label is a thing"""
    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0
    no_object: float = 0.1
    """weight of "no object" in the class loss"""

    def __post_init__(self) -> None:
        refuse_settings(self)
        refuse_no_share(self, "dropout")


def wants(options: Options) -> Wants:
    return Wants(maps=MAPS)


class MaskFormer(QueryHost):
    """What was seen of B images and their ranking → class and mask logits of Q queries, in cells of the finest map."""

    predicts_first = False  # queries start from zero, so that all would say the same

    def __init__(self, options: Options, *, num_classes: int, maps: Sequence[MapShape], kappa: int) -> None:
        rule = LossRule(
            options.class_weight, options.mask_weight, options.dice_weight, options.no_object, WholeMasks()
        )  # fmt: skip
        super().__init__(options, rule, num_classes=num_classes, maps=maps, kappa=kappa)
        from transformers.models.maskformer import modeling_maskformer as parts  # takes seconds to import

        channels, width = [shape.channels for shape in self.shapes], options.width
        self.pixel_decoder = parts.MaskFormerPixelDecoder(
            channels[-1], lateral_widths=channels[:-1], feature_size=width, mask_feature_size=width
        )
        self.transformer_module = parts.MaskFormerTransformerModule(channels[-1], transformer_config(options))
        self.mask_embedder = parts.MaskformerMLPPredictionHead(width, width, width)
        self.positions = Positions(width)
        self.start()

    def start(self) -> None:
        """From random numbers as published (transformers draws some of them from other distributions)."""
        start_convolutions(self.pixel_decoder)
        start_convolutions(self.transformer_module)
        start_matrices(self.transformer_module.decoder)

    def run(self, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        module, cells = self.transformer_module, maps[-1]
        pixels: Tensor = self.pixel_decoder(maps).last_hidden_state
        if module.input_projection is not None:
            cells = module.input_projection(cells)
        places = self.positions(cells.shape, cells.device, cells.dtype).flatten(2).mT
        memory = cells.flatten(2).mT
        asked = module.queries_embedder.weight.expand(memory.shape[0], -1, -1)
        states = [torch.zeros_like(asked)]
        for layer in module.decoder.layers:
            states.append(layer(states[-1], None, places, asked, memory))
        return pixels, states

    def embedded(self, queries: Tensor) -> Tensor:
        embedded: Tensor = self.mask_embedder(queries)
        return embedded


def transformer_config(options: Options) -> Any:
    """For transformers' module. Dropout of attention and inside the feed-forward part is the published one's, which
    transformers leaves out by default."""
    from transformers import MaskFormerConfig, MaskFormerDetrConfig

    dropout = options.dropout
    without_backbone: dict[str, Any] = {"use_timm_backbone": False}  # of timm, which would be asked for weights
    decoder = MaskFormerDetrConfig(
        **without_backbone, num_queries=options.queries, d_model=options.width, decoder_layers=options.layers,
        encoder_layers=0, encoder_attention_heads=options.heads, decoder_attention_heads=options.heads,
        decoder_ffn_dim=options.ffn, dropout=dropout, attention_dropout=dropout, activation_dropout=dropout,
    )  # fmt: skip
    return MaskFormerConfig(decoder_config=decoder)


def build(options: Options, *, num_classes: int, maps: Sequence[MapShape], kappa: int) -> nn.Module:
    """Raises UserError where transformers is not installed."""
    refuse_missing("maskformer")
    return MaskFormer(options, num_classes=num_classes, maps=maps, kappa=kappa)
