"""DINOv2's vision transformers as EoMT has them in transformers: registers, layer scale, positions of patches alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from kappaseg_core.errors import UserError
from kappaseg_core.weights.hf import linear, model_of_timm, packed, refuse_other
from kappaseg_core.weights.layout import State, layers, sizes, square_root
from kappaseg_core.weights.renaming import Rule

#: (width, blocks, has a gated feed-forward part) → the model of timm; other sizes are options of the base model
NAMES = {
    (384, 12, False): "vit_small_patch14_reg4_dinov2",
    (768, 12, False): "vit_base_patch14_reg4_dinov2",
    (1024, 24, False): "vit_large_patch14_reg4_dinov2",
    (1536, 40, True): "vit_giant_patch14_reg4_dinov2",
}
PATCH, REGISTERS = 14, 4  # of the models of timm
BLOCK, OURS = r"layers\.(\d+)", r"blocks.\1"
ATTENTION = rf"{BLOCK}\.attention\."
EPS = 1e-6

RULES = (
    Rule(r"embeddings\.cls_token", "cls_token"),
    Rule(r"embeddings\.register_tokens", "reg_token"),
    Rule(r"embeddings\.position_embeddings\.weight", "pos_embed", change=partial(torch.unsqueeze, dim=0)),
    Rule(r"embeddings\.position_ids", None, "the numbers of the patches"),
    linear(r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    linear(rf"{BLOCK}\.norm1", rf"{OURS}.norm1"),
    linear(rf"{BLOCK}\.norm2", rf"{OURS}.norm2"),
    *packed((rf"{ATTENTION}q_proj", rf"{ATTENTION}k_proj", rf"{ATTENTION}v_proj"), rf"{OURS}.attn.qkv"),
    linear(rf"{ATTENTION}(?:out_proj|o_proj)", rf"{OURS}.attn.proj"),
    Rule(rf"{BLOCK}\.layer_scale([12])\.lambda1", rf"{OURS}.ls\2.gamma"),
    linear(rf"{BLOCK}\.mlp\.(?:fc1|weights_in)", rf"{OURS}.mlp.fc1"),
    linear(rf"{BLOCK}\.mlp\.(?:fc2|weights_out|down_proj)", rf"{OURS}.mlp.fc2"),
    Rule(rf"{BLOCK}\.mlp\.gate_proj\.(weight|bias)", rf"{OURS}.mlp.fc1.\2[0]"),
    Rule(rf"{BLOCK}\.mlp\.up_proj\.(weight|bias)", rf"{OURS}.mlp.fc1.\2[1]"),
    linear("layernorm", "norm"),
)


def settings(config: Mapping[str, Any], state: State) -> dict[str, Any]:
    """The settings of a backbone. config: config.json.   state: its tensors, named by RULES. Raises UserError."""
    gated = bool(config.get("use_swiglu_ffn", False))
    refuse_other(config, "hidden_act", "gelu")
    width, _, patch, _ = sizes(state, "patch_embed.proj.weight", 4)
    blocks, cells = layers(state, r"blocks\.(\d+)\."), sizes(state, "pos_embed", 3)[1]
    heads, registers = int(config.get("num_attention_heads", width // 64)), sizes(state, "reg_token", 3)[1]
    options: dict[str, Any] = {"img_size": patch * square_root(cells, "embeddings.position_embeddings")}
    if patch != PATCH:
        options["patch_size"] = patch
    if registers != REGISTERS:
        options["reg_tokens"] = registers
    if (eps := config.get("layer_norm_eps", EPS)) != EPS:
        options["norm_eps"] = eps
    if (width, blocks, gated) not in NAMES:
        if gated:
            raise UserError(f"its gated ViT is {width} wide with {blocks} blocks; timm has one, 1536 wide with 40")
        options |= {"embed_dim": width, "depth": blocks}
    if heads != width // 64:
        options["num_heads"] = heads
    hidden = sizes(state, "blocks.0.mlp.fc1.weight", 2)[0]
    if not gated and hidden != 4 * width:
        options["mlp_ratio"] = hidden / width
    return model_of_timm(NAMES.get((width, blocks, gated), NAMES[768, 12, False]), options)
