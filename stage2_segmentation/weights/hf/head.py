"""UPerNet's heads as transformers has them, on its own backbones and on BEiT: parameter names → the host's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kappaseg_core.weights.layout import State, sizes
from kappaseg_core.weights.renaming import Rule

DECODER, AUXILIARY = r"decode_head\.", r"auxiliary_head\."
POOLS = (1, 2, 3, 6)  # where config.json does not say them
NO_AUXILIARY = "a second head, which the network is without (host.options.auxiliary 0); it served training alone"
OTHER_AUXILIARY = "a second head of another form than one convolution; it served training alone"


@dataclass(frozen=True)
class Heads:
    """told, assumed: settings of the host.   rules: from names of the whole network.   class_rows: our names."""

    told: dict[str, Any]
    assumed: dict[str, Any]
    rules: tuple[Rule, ...]
    class_rows: tuple[str, ...]
    num_classes: int


def heads(config: Mapping[str, Any], state: State) -> Heads:
    """The heads with these tensors. config: config.json. Raises UserError."""
    classes, width, *_ = sizes(state, "decode_head.classifier.weight", 4)
    told: dict[str, Any] = {
        "host.kind": "upernet", "host.options.width": width, "host.options.rank_scale": "none",
        "host.options.pools": list(config.get("pool_scales", POOLS)),
    }  # fmt: skip
    rows = ("host.classify.cls_emb", "host.classify.cls_bias")
    has_auxiliary = "auxiliary_head.classifier.weight" in state
    if not has_auxiliary or config.get("auxiliary_num_convs", 1) != 1 or config.get("auxiliary_concat_input", False):
        told["host.options.auxiliary"] = 0.0
        left = Rule(rf"{AUXILIARY}.*", None, OTHER_AUXILIARY)
        return Heads(told, {}, (*DECODE_RULES, left), rows, classes)
    told["host.options.auxiliary_width"] = sizes(state, "auxiliary_head.classifier.weight", 4)[1]
    assumed = {"host.options.auxiliary": float(config.get("auxiliary_loss_weight", 0.4))}
    more = tuple(name.replace("host.", "host.auxiliary.") for name in rows)
    return Heads(told, assumed, (*DECODE_RULES, *AUXILIARY_RULES), rows + more, classes)


def flat(kernel: Tensor) -> Tensor:
    """A 1×1 convolution [K, D, 1, 1] as rows [K, D]."""
    return kernel.flatten(1)


def unit(theirs: str, ours: str) -> list[Rule]:
    """A convolution and its batch normalisation."""
    number = theirs.count(r"(\d+)") + 1
    statistics = "(weight|bias|running_mean|running_var|num_batches_tracked)"
    return [
        Rule(rf"{theirs}\.(?:conv|convolution)\.weight", rf"{ours}.0.weight"),
        Rule(rf"{theirs}\.(?:bn|batch_norm|normalization)\.{statistics}", rf"{ours}.1.\{number}"),
    ]


def classifier(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(rf"{theirs}classifier\.weight", f"{ours}classify.cls_emb", change=flat),
        Rule(rf"{theirs}classifier\.bias", f"{ours}classify.cls_bias"),
    ]


DECODE_RULES = (
    *unit(rf"{DECODER}psp_modules\.(?:blocks\.)?(\d+)\.(?:1|conv)", r"host.fuse.context.pooled.\1"),
    *unit(rf"{DECODER}(?:psp_)?bottleneck", "host.fuse.context.bottleneck"),
    *unit(rf"{DECODER}lateral_convs\.(\d+)", r"host.fuse.lateral.\1"),
    *unit(rf"{DECODER}fpn_convs\.(\d+)", r"host.fuse.smooth.\1"),
    *unit(rf"{DECODER}fpn_bottleneck", "host.fuse.bottleneck"),
    *classifier(DECODER, "host."),
)
AUXILIARY_RULES = (
    *unit(rf"{AUXILIARY}convs\.0", "host.auxiliary.convolution"),
    *classifier(AUXILIARY, "host.auxiliary."),
)
#: what a network without a second head passes over
SPARE = {r"host\.auxiliary\..*": NO_AUXILIARY}
#: what a network has beyond the one in the folder: a label branch, for the joint scheme
NEW = {r"branch\..*": "the label branch, which the network had not"}
