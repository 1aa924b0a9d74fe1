"""MaskFormerForInstanceSegmentation on Swin or ResNet (Cheng et al., NeurIPS 2021)."""

from __future__ import annotations

from kappaseg_core.weights.hf import refuse_other
from kappaseg_core.weights.layout import Layout, layers, sizes
from kappaseg_core.weights.renaming import Rule
from kappaseg_core.weights.snapshot import Snapshot
from stage2_segmentation.weights.hf.queries import TRANSFORMER, layout_of, refuse_other_widths

WIDTH, HEADS, DROPOUT = 256, 8, 0.1  # where config.json does not say them
LAYER = rf"{TRANSFORMER}decoder\.layers\.(\d+)\."
OURS = r"host.transformer_module.decoder.layers.\1."

RULES = (
    Rule(rf"{LAYER}(self_attn|encoder_attn)\.out_proj\.(weight|bias)", rf"{OURS}\2.o_proj.\3"),
    Rule(rf"{LAYER}(fc[12])\.(weight|bias)", rf"{OURS}mlp.\2.\3"),
    Rule(r"mask_embedder\.(.*)", r"host.mask_embedder.\1"),
)


def layout(snapshot: Snapshot) -> Layout:
    """The network in a folder. Raises UserError."""
    config, state = snapshot.config, snapshot.tensors
    decoder = config.get("decoder_config") or {}
    refuse_other(decoder, "activation_function", "relu")
    refuse_other_widths(
        snapshot,
        {name: config.get(name, WIDTH) for name in ("fpn_feature_size", "mask_feature_size")}
        | {"d_model": decoder.get("d_model", WIDTH)},
    )
    theirs = "model.transformer_module.decoder.layers.0."
    first = next((name for name in (f"{theirs}fc1.weight", f"{theirs}mlp.fc1.weight") if name in state), theirs)
    told = {
        "host.kind": "maskformer",
        "host.options.layers": layers(state, LAYER),
        "host.options.heads": decoder.get("decoder_attention_heads", HEADS),
        "host.options.ffn": sizes(state, first, 2)[0],
    }
    assumed = {
        "host.options.dropout": float(decoder.get("dropout", DROPOUT)),
        "host.options.class_weight": float(config.get("cross_entropy_weight", 1.0)),
        "host.options.mask_weight": float(config.get("mask_weight", 20.0)),
        "host.options.dice_weight": float(config.get("dice_weight", 1.0)),
        "host.options.no_object": float(config.get("no_object_weight", 0.1)),
    }
    return layout_of(snapshot, "MaskFormer", told, assumed, RULES)
