"""A plain ViT on the map of a convolutional network, whose cells are its patches (the hybrid architecture of
Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, Sec. 3.1).

`name`, `weights` and `level` are those of the convolutional network, one of timm; options.vit has what the ViT is made
with (depth, embed_dim, num_heads and other arguments of timm's VisionTransformer), the other options are for the
convolutional network. The ViT starts from random numbers. Published hybrids are trained as a whole; here the
convolutional network stays as its weight file has it unless options.train_cells is true, so that hosts which need a ViT
can be trained on few images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from kappaseg_core.backbones import Backbone
from kappaseg_core.backbones import timm as networks
from kappaseg_core.backbones.on_cpu import use_faster_modules
from kappaseg_core.backbones.positions import Positions
from kappaseg_core.config import BackboneConfig
from kappaseg_core.errors import UserError
from kappaseg_core.weights.files import one_line

SMALL = {"depth": 4, "embed_dim": 192, "num_heads": 3, "class_token": False, "global_pool": "", "img_size": 224}


class Cells(nn.Module):
    """Images f32 [B, 3, H, W] → tokens [B, h, w, D]: a cell of the map is a token. In place of timm's PatchEmbed."""

    def __init__(self, stem: Backbone, *, img_size: int, embed_dim: int, **_: Any) -> None:
        super().__init__()
        side = -(-img_size // stem.stride)
        self.stem, self.project = stem, nn.Conv2d(stem.channels, embed_dim, 1)
        self.grid_size, self.num_patches, self.patch_size = (side, side), side * side, stem.stride

    def feat_ratio(self) -> int:
        """Pixels per cell."""
        return self.stem.stride

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.project(self.stem(images))
        return tokens.permute(0, 2, 3, 1)


def build(config: BackboneConfig, *, image_size: int | None = None) -> networks.TimmNetwork:
    """The ViT on the map of `level`, as a network with one map and with blocks that a host may take over."""
    options = dict(config.options)
    wanted, trained = options.pop("vit", {}), options.pop("train_cells", False)
    if not isinstance(wanted, Mapping):
        raise UserError(f"backbone.options.vit = {wanted!r}, wanted settings such as {{depth: 4, embed_dim: 192}}")
    if config.weights is not None and config.is_frozen:
        raise UserError(
            f"backbone.weights = {config.weights} are those of {config.name}; the ViT on it has to be trained, so set "
            "backbone.frozen false"
        )
    if not isinstance(trained, bool):
        raise UserError(f"backbone.options.train_cells = {trained!r}, wanted true or false")
    network = networks.build(replace(config, options=options, checkpointing=False), image_size=image_size)
    stem = Backbone(network, frozen=not trained)
    side = {} if image_size is None else {"img_size": image_size}
    try:
        model: Any = VisionTransformer(
            **{**SMALL, **side, **wanted}, num_classes=0, dynamic_img_size=True, embed_layer=partial(Cells, stem)
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(
            f"backbone.options.vit = {dict(wanted)} do not make a ViT: {one_line(error)}; give depth, embed_dim, "
            "num_heads (a divisor of embed_dim) or other arguments of timm's VisionTransformer"
        ) from None
    model._pos_embed = Positions(model, "bicubic")
    model.pretrained_cfg = {"mean": stem.mean, "std": stem.std}
    use_faster_modules(model)
    hybrid = networks.TimmNetwork(model, None)
    networks.measure(hybrid, config.name)
    if config.checkpointing:
        networks.check_checkpointing(hybrid, config.name)
    return hybrid
