"""ConvNeXts of transformers, as a backbone that normalises the map of every stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.weights.hf import linear, model_of_timm, refuse_other
from kappaseg_core.weights.layout import State, layers, sizes
from kappaseg_core.weights.renaming import Rule

STAGES = 4
EPS = 1e-6  # of all its layer normalisations
#: (width, blocks of the stages) → the model of timm; other sizes are options of the smallest
NAMES: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (3, 3, 9, 3)): "convnext_tiny",
    (96, (3, 3, 27, 3)): "convnext_small",
    (128, (3, 3, 27, 3)): "convnext_base",
    (192, (3, 3, 27, 3)): "convnext_large",
    (256, (3, 3, 27, 3)): "convnext_xlarge",
}
STAGE = r"encoder\.stages\.(\d+)"
BLOCK = rf"{STAGE}\.layers\.(\d+)"
OURS = r"stages.\1.blocks.\2"

RULES = (
    linear(r"embeddings\.patch_embeddings", "stem.0"),
    linear(r"embeddings\.layernorm", "stem.1"),
    linear(rf"{STAGE}\.downsampling_layer\.(\d+)", r"stages.\1.downsample.\2"),
    linear(rf"{BLOCK}\.dwconv", rf"{OURS}.conv_dw"),
    linear(rf"{BLOCK}\.layernorm", rf"{OURS}.norm"),
    linear(rf"{BLOCK}\.pwconv1", rf"{OURS}.mlp.fc1"),
    linear(rf"{BLOCK}\.pwconv2", rf"{OURS}.mlp.fc2"),
    Rule(rf"{BLOCK}\.layer_scale_parameter", rf"{OURS}.gamma"),
    linear(rf"hidden_states_norms\.stage{STAGES}", "norm_pre"),
)


def settings(config: Mapping[str, Any], state: State) -> dict[str, Any]:
    """The settings of a backbone. config: its part of config.json.   state: its tensors, named by RULES.

    timm normalises the last map where the classifier would pool it afterwards (head_norm_first). Raises UserError.
    """
    refuse_other(config, "hidden_act", "gelu")
    width, _, patch, _ = sizes(state, "stem.0.weight", 4)
    blocks = tuple(layers(state, rf"stages\.{stage}\.blocks\.(\d+)\.") for stage in range(STAGES))
    if "stages.0.blocks.0.gamma" not in state:
        raise UserError("its ConvNeXt has no layer scale (layer_scale_init_value 0), and timm's always has one")
    if 0 in blocks:
        raise UserError(f"its ConvNeXt has {blocks} blocks in its {STAGES} stages, wanted at least one in each")
    widths = [sizes(state, f"stages.{stage}.blocks.0.conv_dw.weight", 4)[0] for stage in range(STAGES)]
    options: dict[str, Any] = {"head_norm_first": True}
    if (width, blocks) not in NAMES or widths != [width << stage for stage in range(STAGES)]:
        options |= {"dims": widths, "depths": list(blocks)}
    if patch != 4:
        options["patch_size"] = patch
    return model_of_timm(NAMES.get((width, blocks), "convnext_tiny"), options)
