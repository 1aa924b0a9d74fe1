"""Swin transformers of transformers, as a backbone that normalises the map of every stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.weights.hf import KIND, linear, packed, refuse_other
from kappaseg_core.weights.layout import State
from kappaseg_core.weights.renaming import Rule
from kappaseg_core.weights.swin import STAGES, swin_settings

EPS = 1e-5  # of timm's layer normalisations
INSIDE = r"(?:swin\.|model\.)?"  # of the backbone, by the class and the time
BLOCK = rf"{INSIDE}encoder\.layers\.(\d+)\.blocks\.(\d+)"
OURS = r"layers.\1.blocks.\2"
TABLE = "relative_position_bias_table"

#: A stage ends with its downsampling there, and begins with it in timm.
RULES = (
    linear(rf"{INSIDE}embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    linear(rf"{INSIDE}embeddings\.norm", "patch_embed.norm"),
    linear(rf"{BLOCK}\.layernorm_before", rf"{OURS}.norm1"),
    linear(rf"{BLOCK}\.layernorm_after", rf"{OURS}.norm2"),
    *packed(
        (
            rf"{BLOCK}\.attention\.(?:self\.query|q_proj)",
            rf"{BLOCK}\.attention\.(?:self\.key|k_proj)",
            rf"{BLOCK}\.attention\.(?:self\.value|v_proj)",
        ),
        rf"{OURS}.attn.qkv",
    ),
    Rule(rf"{BLOCK}\.attention\.(?:self|relative_position_bias)\.{TABLE}", rf"{OURS}.attn.{TABLE}"),
    Rule(rf"{BLOCK}\..*relative_position_index", None, "places within a window, which follow from its size"),
    linear(rf"{BLOCK}\.attention\.(?:output\.dense|o_proj)", rf"{OURS}.attn.proj"),
    linear(rf"{BLOCK}\.(?:intermediate\.dense|mlp\.fc1)", rf"{OURS}.mlp.fc1"),
    linear(rf"{BLOCK}\.(?:output\.dense|mlp\.fc2)", rf"{OURS}.mlp.fc2"),
    *(
        Rule(
            rf"{INSIDE}encoder\.layers\.{n}\.downsample\.(norm\.{KIND}|reduction\.weight)",
            rf"layers.{n + 1}.downsample.\1",
        ) for n in range(STAGES - 1)
    ),
    linear(rf"hidden_states_norms\.(?:stage{STAGES}|{STAGES - 1})", "norm"),
    Rule(rf"{INSIDE}layernorm\.{KIND}", None, "a norm behind the last stage, whose map has one of its own"),
)  # fmt: skip


def settings(config: Mapping[str, Any], state: State) -> dict[str, Any]:
    """The settings of a backbone. config: its part of config.json.   state: its tensors, named by RULES.

    Windows are whole everywhere, shifted even on maps of one window, and maps are padded before they are shifted: as in
    transformers and mmsegmentation. timm by itself does neither. Raises UserError.
    """
    refuse_other(config, "hidden_act", "gelu")
    refuse_other(config, "use_absolute_embeddings", False)
    refuse_other(config, "layer_norm_eps", EPS)
    if f"layers.0.blocks.0.attn.{TABLE}" not in state:
        raise UserError("it has no Swin for a backbone")
    told = swin_settings(state, "") | {
        "backbone.options.always_partition": True, "backbone.options.pad_before_shift": True,
    }  # fmt: skip
    if not config.get("qkv_bias", True):
        told["backbone.options.qkv_bias"] = False
    hidden, width = state["layers.0.blocks.0.mlp.fc1.weight"].shape
    return told if hidden == 4 * width else told | {"backbone.options.mlp_ratio": hidden / width}
