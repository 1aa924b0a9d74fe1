"""Mask2FormerForUniversalSegmentation on Swin or ResNet (Cheng et al., CVPR 2022)."""

from __future__ import annotations

from kappaseg_core.weights.hf import refuse_other
from kappaseg_core.weights.layout import Layout, layers, sizes
from kappaseg_core.weights.snapshot import Snapshot
from stage2_segmentation.weights.hf.queries import PIXELS, TRANSFORMER, layout_of, refuse_other_widths

WIDTH, HEADS, POINTS = 256, 8, 12544  # where config.json does not say them
STRIDES = [4, 8, 16, 32]


def layout(snapshot: Snapshot) -> Layout:
    """The network in a folder. Raises UserError."""
    config, state = snapshot.config, snapshot.tensors
    refuse_other(config, "activation_function", "relu")
    refuse_other(config, "pre_norm", False)
    refuse_other(config, "enforce_input_projection", False)
    refuse_other(config, "common_stride", STRIDES[0])
    refuse_other(config, "feature_strides", STRIDES)
    refuse_other_widths(
        snapshot, {name: config.get(name, WIDTH) for name in ("feature_size", "mask_feature_size", "hidden_dim")}
    )
    encoder = "model.pixel_level_module.decoder.encoder.layers.0.fc1.weight"
    decoder = "model.transformer_module.decoder.layers.0.fc1.weight"
    told = {
        "host.kind": "mask2former",
        "host.options.encoder_layers": layers(state, rf"{PIXELS}decoder\.encoder\.layers\.(\d+)\."),
        "host.options.encoder_ffn": sizes(state, encoder, 2)[0],
        "host.options.layers": layers(state, rf"{TRANSFORMER}decoder\.layers\.(\d+)\."),
        "host.options.heads": config.get("num_attention_heads", HEADS),
        "host.options.ffn": sizes(state, decoder, 2)[0],
    }
    assumed = {
        "host.options.class_weight": float(config.get("class_weight", 2.0)),
        "host.options.mask_weight": float(config.get("mask_weight", 5.0)),
        "host.options.dice_weight": float(config.get("dice_weight", 5.0)),
        "host.options.no_object": float(config.get("no_object_weight", 0.1)),
        "host.options.points": config.get("train_num_points", POINTS),
    }
    return layout_of(snapshot, "Mask2Former", told, assumed, ())
