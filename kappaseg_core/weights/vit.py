"""Plain vision transformers: mmcv's and AugReg's parameter names → timm's, and the model of timm with their sizes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kappaseg_core.weights.layout import State, layers, sizes, square_root
from kappaseg_core.weights.renaming import Rule

MODEL = "backbone.network.model."  # where timm's parameters are in our networks
HEAD_WIDTH = 64  # of every published plain ViT; shapes do not tell the number of heads
#: (width, blocks) → the model of timm; other sizes are options of the base model
NAMES = {
    (192, 12): "vit_tiny_patch16_384",
    (384, 12): "vit_small_patch16_384",
    (768, 12): "vit_base_patch16_384",
    (1024, 24): "vit_large_patch16_384",
}
DISTILLED = {
    (192, 12): "deit_tiny_distilled_patch16_224",
    (384, 12): "deit_small_distilled_patch16_224",
    (768, 12): "deit_base_distilled_patch16_384",
}
KIND = r"(weight|bias)"

#: timm's own names, which the original Segmenter has too
TIMM = (
    Rule(r"(cls_token|dist_token|pos_embed|patch_embed\.proj\.\w+|norm\.\w+|blocks\.\d+\..*)", r"\1"),
    Rule(rf"(head|head_dist)\.{KIND}", None, "the classifier of whole images, which segmentation does not use"),
)

#: mmsegmentation's, whose attention and feed-forward parts are mmcv's
MMCV = (
    Rule(r"(cls_token|pos_embed)", r"\1"),
    Rule(rf"patch_embed\.projection\.{KIND}", r"patch_embed.proj.\1"),
    Rule(rf"layers\.(\d+)\.ln([12])\.{KIND}", r"blocks.\1.norm\2.\3"),
    Rule(rf"layers\.(\d+)\.attn\.attn\.in_proj_{KIND}", r"blocks.\1.attn.qkv.\2"),
    Rule(rf"layers\.(\d+)\.attn\.attn\.out_proj\.{KIND}", r"blocks.\1.attn.proj.\2"),
    Rule(rf"layers\.(\d+)\.ffn\.layers\.0\.0\.{KIND}", r"blocks.\1.mlp.fc1.\2"),
    Rule(rf"layers\.(\d+)\.ffn\.layers\.1\.{KIND}", r"blocks.\1.mlp.fc2.\2"),
    Rule(rf"ln1\.{KIND}", r"norm.\1"),
)


def transposed(kernel: Tensor) -> Tensor:
    """Dense kernels of JAX are [in, out]."""
    return kernel.T


def heads_in(kernel: Tensor) -> Tensor:
    """Query, key, value: [D, heads, D/heads] → [D, D], out first."""
    return kernel.flatten(1).T


def heads_out(kernel: Tensor) -> Tensor:
    """Output of the attention: [heads, D/heads, D] → [D, D], out first."""
    return kernel.flatten(0, 1).T


def patches(kernel: Tensor) -> Tensor:
    """[h, w, 3, D] → [D, 3, h, w]."""
    return kernel.permute(3, 2, 0, 1)


BLOCK = r"Transformer/encoderblock_(\d+)/"
ATTENTION = BLOCK + "MultiHeadDotProductAttention_1/"
#: those of Google's AugReg files (.npz), arrays of JAX
AUGREG = (
    Rule("cls", "cls_token"),
    Rule("Transformer/posembed_input/pos_embedding", "pos_embed"),
    Rule("embedding/kernel", "patch_embed.proj.weight", change=patches),
    Rule("embedding/bias", "patch_embed.proj.bias"),
    *(
        rule
        for part, name in enumerate(("query", "key", "value"))
        for rule in (
            Rule(f"{ATTENTION}{name}/kernel", rf"blocks.\1.attn.qkv.weight[{part}]", change=heads_in),
            Rule(f"{ATTENTION}{name}/bias", rf"blocks.\1.attn.qkv.bias[{part}]", change=Tensor.flatten),
        )
    ),
    Rule(f"{ATTENTION}out/kernel", r"blocks.\1.attn.proj.weight", change=heads_out),
    Rule(f"{ATTENTION}out/bias", r"blocks.\1.attn.proj.bias"),
    *(
        rule
        for theirs, ours in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2"))
        for rule in (
            Rule(f"{BLOCK}{theirs}/scale", rf"blocks.\1.{ours}.weight"),
            Rule(f"{BLOCK}{theirs}/bias", rf"blocks.\1.{ours}.bias"),
        )
    ),
    *(
        rule
        for theirs, ours in (("Dense_0", "fc1"), ("Dense_1", "fc2"))
        for rule in (
            Rule(f"{BLOCK}MlpBlock_3/{theirs}/kernel", rf"blocks.\1.mlp.{ours}.weight", change=transposed),
            Rule(f"{BLOCK}MlpBlock_3/{theirs}/bias", rf"blocks.\1.mlp.{ours}.bias"),
        )
    ),
    Rule("Transformer/encoder_norm/scale", "norm.weight"),
    Rule("Transformer/encoder_norm/bias", "norm.bias"),
    Rule(r"(head|pre_logits)/(kernel|bias)", None, "the classifier of whole images, which a backbone does not use"),
)  # fmt: skip


def vit_settings(state: State, prefix: str = "") -> dict[str, Any]:
    """The settings of a backbone with these tensors, under timm's names below `prefix`. Raises UserError.

    Width, blocks, patch, width of the feed-forward part and the grid of the position table are all in the shapes; the
    table is kept at its own size and resized for images of another.
    """
    width, _, patch, _ = sizes(state, f"{prefix}patch_embed.proj.weight", 4)
    blocks = layers(state, rf"{prefix}blocks\.(\d+)\.")
    hidden, _ = sizes(state, f"{prefix}blocks.0.mlp.fc1.weight", 2)
    table = f"{prefix}pos_embed"
    distilled = f"{prefix}dist_token" in state
    cells = sizes(state, table, 3)[1] - (2 if distilled else 1)
    names = DISTILLED if distilled else NAMES
    options: dict[str, Any] = {"img_size": patch * square_root(cells, table)}
    if (width, blocks) not in names:
        options |= {"embed_dim": width, "depth": blocks}
    if patch != 16:
        options["patch_size"] = patch
    if hidden != 4 * width:
        options["mlp_ratio"] = hidden / width
    name = names.get((width, blocks), names[768, 12])
    return {"backbone.kind": "timm", "backbone.name": name} | {f"backbone.options.{k}": v for k, v in options.items()}


def vit_heads(width: int) -> int:
    """The published number of attention heads for a width; shapes do not tell it."""
    return max(1, width // HEAD_WIDTH)
