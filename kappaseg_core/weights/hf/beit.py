"""BEiTs of transformers, of whose blocks some are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.weights.hf import KIND, linear, model_of_timm, refuse_other
from kappaseg_core.weights.layout import State, layers, sizes, square_root
from kappaseg_core.weights.renaming import Rule

#: (width, blocks) → the model of timm; other sizes are options of the first
NAMES = {(768, 12): "beit_base_patch16_384", (1024, 24): "beit_large_patch16_512"}
BLOCK = r"(?:encoder\.layer|layers)\.(\d+)"
OURS = r"blocks.\1"
TABLE = "relative_position_bias_table"
SPECIAL = 3  # rows of a table for the class token
EPS = 1e-12  # of its layer normalisations, where config.json does not say it

RULES = (
    Rule(r"embeddings\.cls_token", "cls_token"),
    linear(r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    Rule(r"embeddings\.mask_token", None, "stands for hidden patches in pretraining"),
    linear(rf"{BLOCK}\.layernorm_before", rf"{OURS}.norm1"),
    linear(rf"{BLOCK}\.layernorm_after", rf"{OURS}.norm2"),
    Rule(rf"{BLOCK}\.attention\.(?:attention\.query|q_proj)\.weight", rf"{OURS}.attn.qkv.weight[0]"),
    Rule(rf"{BLOCK}\.attention\.(?:attention\.key|k_proj)\.weight", rf"{OURS}.attn.qkv.weight[1]"),
    Rule(rf"{BLOCK}\.attention\.(?:attention\.value|v_proj)\.weight", rf"{OURS}.attn.qkv.weight[2]"),
    Rule(rf"{BLOCK}\.attention\.(?:attention\.query|q_proj)\.bias", rf"{OURS}.attn.q_bias"),
    Rule(rf"{BLOCK}\.attention\.(?:attention\.value|v_proj)\.bias", rf"{OURS}.attn.v_bias"),
    Rule(rf"{BLOCK}\.(?:attention\.attention\.)?relative_position_bias\.{TABLE}", rf"{OURS}.attn.{TABLE}"),
    Rule(r".*relative_position_index", None, "places within the grid, which follow from its size"),
    linear(rf"{BLOCK}\.attention\.(?:output\.dense|o_proj)", rf"{OURS}.attn.proj"),
    linear(rf"{BLOCK}\.(?:intermediate\.dense|mlp\.fc1)", rf"{OURS}.mlp.fc1"),
    linear(rf"{BLOCK}\.(?:output\.dense|mlp\.fc2)", rf"{OURS}.mlp.fc2"),
    Rule(rf"{BLOCK}\.lambda_([12])", rf"{OURS}.gamma_\2"),
    Rule(rf"(?:pooler\.)?layernorm\.{KIND}", None, "a norm behind the last block, before which its map is taken"),
)


def settings(config: Mapping[str, Any], state: State) -> dict[str, Any]:
    """The settings of a backbone. config: config.json.   state: its tensors, named by RULES.

    At grids of another size its tables are resampled bilinearly, as in transformers. Raises UserError.
    """
    refuse_other(config, "hidden_act", "gelu")
    refuse_other(config, "use_absolute_position_embeddings", False)
    refuse_other(config, "use_shared_relative_position_bias", False)
    width, _, patch, _ = sizes(state, "patch_embed.proj.weight", 4)
    blocks, table = layers(state, r"blocks\.(\d+)\."), f"blocks.0.attn.{TABLE}"
    if table not in state:
        raise UserError("its BEiT has no relative positions in its blocks")
    rows, heads = sizes(state, table, 2)
    options: dict[str, Any] = {
        "img_size": patch * ((square_root(rows - SPECIAL, table) + 1) // 2),
        "norm_eps": config.get("layer_norm_eps", EPS), "position_interpolation": "bilinear",
    }  # fmt: skip
    if (width, blocks) not in NAMES:
        options |= {"embed_dim": width, "depth": blocks}
    if heads != width // 64:
        options["num_heads"] = heads
    if patch != 16:
        options["patch_size"] = patch
    if "blocks.0.gamma_1" not in state:
        options["init_values"] = 0.0  # none
    hidden, _ = sizes(state, "blocks.0.mlp.fc1.weight", 2)
    if hidden != 4 * width:
        options["mlp_ratio"] = hidden / width
    return model_of_timm(NAMES.get((width, blocks), NAMES[768, 12]), options)
