"""The mask transformer in the checkpoints of Segmenter and RankSeg: parameter names → ours, and its sizes."""

from __future__ import annotations

from typing import Any

from kappaseg_core.weights.label_decoder import first
from kappaseg_core.weights.layout import State, layers, sizes
from kappaseg_core.weights.renaming import Rule
from kappaseg_core.weights.vit import vit_heads

KIND = r"(weight|bias)"
BLOCK_PARTS = r"(norm[12]|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"


def host_rules(depth: int, *, first_block: int = 0) -> list[Rule]:
    """Names below the decoder → the host's. Its blocks are those from `first_block` on, `depth` of them."""
    blocks = [Rule(rf"blocks\.{n + first_block}\.{BLOCK_PARTS}", rf"host.blocks.{n}.\1.\2") for n in range(depth)]
    return [
        *blocks,
        Rule("cls_emb", "host.cls_emb", change=first),
        Rule(rf"(proj_dec|decoder_norm)\.{KIND}", r"host.\1.\2"),
        Rule(r"(proj_patch|proj_classes)", r"host.\1"),
        Rule(rf"mask_norm\.{KIND}", r"host.rank_scale.\1"),
        Rule(r"mask_norm\.gamma", "host.rank_scale.weight"),
        Rule(r"mask_norm\.beta", "host.rank_scale.bias"),
    ]


def host_settings(state: State, prefix: str, *, first_block: int = 0) -> dict[str, Any]:
    """Sizes of the host with these tensors. Raises UserError."""
    width, _ = sizes(state, f"{prefix}proj_dec.weight", 2)
    return {
        "host.kind": "segmenter",
        "host.options.width": width,
        "host.options.depth": layers(state, rf"{prefix}blocks\.(\d+)\.") - first_block,
        "host.options.ffn": sizes(state, f"{prefix}blocks.{first_block}.mlp.fc1.weight", 2)[0],
    }


def assumed_heads(told: dict[str, Any], encoder_width: int) -> dict[str, Any]:
    """Attention heads of backbone and host as published: 64 channels each."""
    return {
        "backbone.options.num_heads": vit_heads(encoder_width),
        "host.options.heads": vit_heads(told["host.options.width"]),
    }


def inference_settings(image_size: int) -> dict[str, Any]:
    """Windows and crops of the training size, on images whose shorter side is as long: as published for most sets."""
    return {
        "inference.mode": "slide", "inference.short_side": image_size, "inference.window": image_size,
        "inference.stride": image_size, "augment.short_side": image_size, "augment.crop": image_size,
    }  # fmt: skip
