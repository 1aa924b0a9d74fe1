"""Query2Label's transformer and group-wise linear layer: the published parameter names → ours."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kappaseg_core.errors import UserError
from kappaseg_core.weights.layout import State, layers, sizes
from kappaseg_core.weights.renaming import Rule

KIND = r"(weight|bias)"
#: their module of a layer → ours
ENCODER = {"norm1": "self_attention.norm", "linear1": "ffn.widen", "linear2": "ffn.narrow", "norm2": "ffn.norm"}
DECODER = {"norm1": "self_attention.norm", "norm2": "norm", "linear1": "ffn.widen", "linear2": "ffn.narrow",
           "norm3": "ffn.norm"}  # fmt: skip

first = partial(torch.squeeze, dim=0)


def flat(kernel: Tensor) -> Tensor:
    """A 1×1 convolution [D, C, 1, 1] as a linear layer [D, C]."""
    return kernel.flatten(1)


def attention(stack: str, theirs: str, ours: str) -> list[Rule]:
    """An nn.MultiheadAttention, whose queries, keys and values are packed."""
    layer = rf"transformer\.{stack}\.layers\.(\d+)\.{theirs}\."
    inside = rf"{stack}.\1.{ours}."
    packed = tuple(rf"{inside}{part}.\2" for part in ("query", "key", "value"))
    return [Rule(rf"{layer}in_proj_{KIND}", packed), Rule(rf"{layer}out_proj\.{KIND}", rf"{inside}out.\2")]


def layer_parts(stack: str, names: dict[str, str]) -> list[Rule]:
    return [
        Rule(rf"transformer\.{stack}\.layers\.(\d+)\.{theirs}\.{KIND}", rf"{stack}.\1.{ours}.\2")
        for theirs, ours in names.items()
    ]


RULES = (
    *attention("encoder", "self_attn", "self_attention.attention"),
    *layer_parts("encoder", ENCODER),
    *attention("decoder", "self_attn", "self_attention.attention"),
    *attention("decoder", "multihead_attn", "cross_attention"),
    *layer_parts("decoder", DECODER),
    Rule(rf"transformer\.decoder\.norm\.{KIND}", r"norm.\1"),
    Rule(r"input_proj\.weight", "project.weight", change=flat),
    Rule(r"input_proj\.bias", "project.bias"),
    Rule(r"query_embed\.weight", "queries"),
    Rule(r"fc\.W", "weight", change=first),
    Rule(r"fc\.b", "bias", change=first),
)


def decoder_sizes(state: State, prefix: str = "") -> dict[str, Any]:
    """Classes, width, ffn and layers of a head with these tensors. Raises UserError."""
    _, classes, width = sizes(state, f"{prefix}fc.W", 3)
    return {
        "classes": classes,
        "width": width,
        "ffn": sizes(state, f"{prefix}transformer.decoder.layers.0.linear1.weight", 2)[0],
        "encoder_layers": layers(state, rf"{prefix}transformer\.encoder\.layers\.(\d+)\."),
        "decoder_layers": layers(state, rf"{prefix}transformer\.decoder\.layers\.(\d+)\."),
    }


def labels_attend(state: State, decoder_layers: int) -> str:
    """In which decoder layers labels attend to each other: none, first, not_first or all. Raises UserError."""
    there = [f"transformer.decoder.layers.{n}.self_attn.in_proj_weight" in state for n in range(decoder_layers)]
    first_one, others = there[0], set(there[1:])
    if len(others) > 1:
        raise UserError(f"labels attend to each other in decoder layers {there}, wanted all but the first alike")
    if others == {True}:
        return "all" if first_one else "not_first"
    return "first" if first_one else "none"
