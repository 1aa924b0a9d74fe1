"""The original Segmenter's checkpoints (Strudel et al., ICCV 2021): `checkpoint.pth` beside `variant.yml`."""

from __future__ import annotations

from kappaseg_core.errors import UserError
from kappaseg_core.weights.layout import Layout, State, below, sizes
from kappaseg_core.weights.vit import MODEL, TIMM, vit_settings
from stage2_segmentation.weights.mask_transformer import assumed_heads, host_rules, host_settings, inference_settings

ENCODER, DECODER = "encoder.", "decoder."
HALVES = {"backbone.mean": [0.5, 0.5, 0.5], "backbone.std": [0.5, 0.5, 0.5]}
IMAGENET = {"backbone.mean": [0.485, 0.456, 0.406], "backbone.std": [0.229, 0.224, 0.225]}
NORM_EPS = 1e-5  # of its encoder; timm's vision transformers have 1e-6


def layout(state: State) -> Layout:
    """The network with these tensors: all labels, in order of id. Raises UserError."""
    if f"{DECODER}head.weight" in state and f"{DECODER}cls_emb" not in state:
        raise UserError("it is a Segmenter with a linear decoder, which has no class embeddings to choose among")
    _, classes, _ = sizes(state, f"{DECODER}cls_emb", 3)
    told = vit_settings(state, ENCODER) | host_settings(state, DECODER)
    told |= {
        "backbone.options.norm_eps": NORM_EPS, "backbone.options.position_interpolation": "bilinear",
        "source.train": "complete",
    }  # fmt: skip
    distilled = f"{ENCODER}dist_token" in state
    width = sizes(state, f"{ENCODER}patch_embed.proj.weight", 4)[0]
    assumed = assumed_heads(told, width) | (IMAGENET if distilled else HALVES)
    return Layout(
        what=f"Segmenter on {told['backbone.name']}, {classes} classes",
        rules=(
            *below(ENCODER, TIMM, MODEL),
            *below(DECODER, host_rules(told["host.options.depth"]), ""),
        ),
        num_classes=classes, told=told,
        assumed=assumed | inference_settings(told["backbone.options.img_size"]),
        class_rows=("host.cls_emb", "host.rank_scale.weight", "host.rank_scale.bias"),
    )  # fmt: skip
