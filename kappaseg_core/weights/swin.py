"""Swin transformers: the published parameter names → timm's, and the model of timm that has their sizes."""

from __future__ import annotations

from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.weights.layout import State, layers, sizes, square_root
from kappaseg_core.weights.renaming import Rule

STAGES = 4
#: (width, blocks of the stages, window) → the model of timm
NAMES: dict[tuple[int, tuple[int, ...], int], str] = {
    (96, (2, 2, 6, 2), 7): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2), 7): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2), 7): "swin_base_patch4_window7_224",
    (128, (2, 2, 18, 2), 12): "swin_base_patch4_window12_384",
    (192, (2, 2, 18, 2), 7): "swin_large_patch4_window7_224",
    (192, (2, 2, 18, 2), 12): "swin_large_patch4_window12_384",
}

#: A stage ends with its downsampling in the published program, and begins with it in timm.
RULES = (
    Rule(r"layers\.\d+\.blocks\.\d+\.attn_mask", None, "masks of shifted windows, which follow from the image size"),
    Rule(r".*\.relative_position_index", None, "places within a window, which follow from its size"),
    *(Rule(rf"layers\.{n}\.downsample\.(.*)", rf"layers.{n + 1}.downsample.\1") for n in range(STAGES - 1)),
    Rule(r"((?:patch_embed|norm)\..*|layers\.\d+\.blocks\..*)", r"\1"),
)


def is_swin(state: State, prefix: str) -> bool:
    return f"{prefix}layers.0.blocks.0.attn.relative_position_bias_table" in state


def swin_settings(state: State, prefix: str) -> dict[str, Any]:
    """The settings of a backbone with these tensors, the image size left open. Raises UserError.

    A table of relative positions has (2 · window - 1)² rows and a column per head. The last stages may have smaller
    windows than the first, where their whole map is smaller than one.
    """
    width = sizes(state, f"{prefix}patch_embed.proj.weight", 4)[0]
    blocks = tuple(layers(state, rf"{prefix}layers\.{stage}\.blocks\.(\d+)\.") for stage in range(STAGES))
    if 0 in blocks:
        raise UserError(f"its Swin has {blocks} blocks in its {STAGES} stages, wanted at least one in each")
    table = "blocks.0.attn.relative_position_bias_table"
    shapes = [sizes(state, f"{prefix}layers.{stage}.{table}", 2) for stage in range(STAGES)]
    window = max((square_root(rows, table) + 1) // 2 for rows, _ in shapes)
    told = {"backbone.kind": "timm", "backbone.name": NAMES.get((width, blocks, window), NAMES[192, (2, 2, 18, 2), 12])}
    if (width, blocks, window) in NAMES:
        return told
    return told | {
        "backbone.options.embed_dim": width, "backbone.options.depths": list(blocks),
        "backbone.options.num_heads": [heads for _, heads in shapes], "backbone.options.window_size": window,
    }  # fmt: skip
