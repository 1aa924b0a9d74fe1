"""EoMT as the transformers library has it, to compare the encoder-only host with.

Kerssies et al., "Your ViT is Secretly an Image Segmentation Model", CVPR 2025. Random weights and the sizes of a plain
ViT of timm, which other variants stand on: width, depth, heads, patches, registers; with DINOv2's as many parameters,
too. What is measured is the trained network: queries look at all patches (the share of them that is held within its
mask has been annealed to 0).

Legend: B images, Q queries, K all labels, h w cells, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kappaseg_core.attention import attention
from kappaseg_core.backbones import build_backbone
from kappaseg_core.backbones.on_cpu import use_faster_modules
from kappaseg_core.config import build, refuse_below
from kappaseg_core.errors import UserError
from kappaseg_core.optim import Part, parameter_groups
from kappaseg_core.ranking import complete_ranking
from pipelines.bench.learning import PRESENT, autocast, learning, regions, untold
from pipelines.bench.published_way import map_of_queries
from pipelines.bench.variants import Variant

FINEST = 4  # pixels per cell of the masks


@dataclass(frozen=True)
class Options:
    """What host.options may say of it."""

    queries: int = 100
    """learned queries (published: 100 for semantic, 200 for panoptic segmentation)"""
    blocks: int = 3
    """last blocks that the queries join"""
    products: Literal["torch", "ours"] = "torch"
    """torch: linear layers and attention as the library computes them; ours: as this project computes its own"""

    def __post_init__(self) -> None:
        refuse_below(1, self, "queries", "blocks")


def built(variant: Variant) -> Callable[[], object]:
    """The step of a variant, on its device, drawn from torch's generator."""
    with torch.device(variant.device):
        model = network(variant)
        images = torch.randn(variant.images, 3, variant.size, variant.size)
        return (training if variant.train else inference)(variant, model, images)


def network(variant: Variant) -> Any:
    """EomtForUniversalSegmentation with random weights. Raises UserError without the library."""
    options = build(Options, variant.config.host.options, path="host.options")
    try:
        from transformers import AttentionInterface, EomtForUniversalSegmentation
    except ImportError:
        raise UserError("EoMT is the transformers library's; pip install 'kappaseg[hosts]'") from None
    AttentionInterface.register("blocks", attention_in_blocks)
    settings = eomt_config(variant, options)
    settings._attn_implementation = "sdpa" if options.products == "torch" else "blocks"
    model = EomtForUniversalSegmentation(settings).train(variant.train)
    model.attn_mask_probs.zero_()
    if options.products == "ours":
        use_faster_modules(model)
    return model


def eomt_config(variant: Variant, options: Options) -> Any:
    """EomtConfig with the sizes of the variant's backbone."""
    from transformers import EomtConfig

    backbone = replace(variant.config.backbone, weights=None, frozen=False)
    with torch.device("meta"):
        vit: Any = build_backbone(backbone, image_size=variant.size).network
    block, stride = vit.model.blocks[0], vit.strides[0]
    found = EomtConfig(
        hidden_size=vit.model.embed_dim, num_hidden_layers=vit.depth, num_attention_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features // vit.model.embed_dim, image_size=variant.size, patch_size=stride,
        num_register_tokens=vit.model.num_prefix_tokens - 1, num_upscale_blocks=int(math.log2(stride / FINEST)),
        num_blocks=options.blocks, num_queries=options.queries,
    )  # fmt: skip
    found.num_labels = variant.classes
    return found


def attention_in_blocks(
    module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """This project's attention where the library asks for one: [B, H, N, D] → [B, N, H, D], and no weights."""
    return attention(queries, keys, values, mask).transpose(1, 2), None


def training(variant: Variant, model: Any, images: Tensor) -> Callable[[], object]:
    """One step of the configured optimiser: matching and losses on the masks behind each of the last blocks.

    The library's own image processor makes a mask for each label of an image while loading; that is no part of a step.
    """
    labels = torch.arange(min(PRESENT, variant.classes))
    maps = regions(images, complete_ranking(len(images), variant.classes, images.device))
    masks = [(one == labels[:, None, None]).float() for one in maps]

    def loss() -> Tensor:
        with autocast(variant):
            found: Tensor = model(images, mask_labels=masks, class_labels=[labels] * len(masks)).loss
        return found

    optim = variant.config.optim
    return learning(parameter_groups([Part("network", model)], optim), optim, loss, untold)


def inference(variant: Variant, model: Any, images: Tensor) -> Callable[[], object]:
    """Images to label maps."""

    @torch.inference_mode()
    def step() -> object:
        with autocast(variant):
            found = model(images)
        return map_of_queries(found.class_queries_logits.float(), found.masks_queries_logits.float(), images.shape[2:])

    return step
