"""ResNets of transformers, whose maps are taken as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.weights.hf import refuse_other
from kappaseg_core.weights.layout import State, layers, sizes
from kappaseg_core.weights.renaming import Rule
from kappaseg_core.weights.resnets import RESNETS

EPS = None  # it normalises no map
STEM = 64  # channels of timm's
STATISTICS = "(weight|bias|running_mean|running_var|num_batches_tracked)"
STAGE = r"encoder\.stages\.{stage}\.layers\.(\d+)\."


def rules_of(stage: int) -> list[Rule]:
    """Those of a stage, which are counted from 1 in timm, as are the convolutions of a block."""
    theirs, ours = STAGE.format(stage=stage), rf"layer{stage + 1}.\1."
    units = [(rf"layer\.{number}", f"conv{number + 1}", f"bn{number + 1}") for number in range(3)]
    return [
        rule
        for name, convolution, norm in [*units, ("shortcut", "downsample.0", "downsample.1")]
        for rule in (
            Rule(rf"{theirs}{name}\.convolution\.weight", f"{ours}{convolution}.weight"),
            Rule(rf"{theirs}{name}\.normalization\.{STATISTICS}", rf"{ours}{norm}.\2"),
        )
    ]


RULES = (
    Rule(r"embedder\.embedder\.convolution\.weight", "conv1.weight"),
    Rule(rf"embedder\.embedder\.normalization\.{STATISTICS}", r"bn1.\1"),
    *(rule for stage in range(4) for rule in rules_of(stage)),
)


def settings(config: Mapping[str, Any], state: State) -> dict[str, Any]:
    """The settings of a backbone. config: its part of config.json.   state: its tensors, named by RULES.

    Raises UserError.
    """
    refuse_other(config, "hidden_act", "relu")
    refuse_other(config, "downsample_in_first_stage", False)
    refuse_other(config, "downsample_in_bottleneck", False)
    refuse_other(config, "embedding_size", STEM)
    bottlenecks = "layer1.0.conv3.weight" in state
    blocks = tuple(layers(state, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5))
    if 0 in blocks:
        raise UserError(f"its ResNet has {blocks} blocks in its stages, wanted at least one in each")
    widths = [sizes(state, f"layer{stage}.0.conv1.weight", 4)[0] for stage in range(1, 5)]
    told: dict[str, Any] = {"backbone.kind": "timm", "backbone.name": "resnet50" if bottlenecks else "resnet18"}
    if (bottlenecks, blocks) in RESNETS:
        told["backbone.name"] = RESNETS[bottlenecks, blocks]
    else:
        told["backbone.options.layers"] = list(blocks)
    return told if widths == [64, 128, 256, 512] else told | {"backbone.options.channels": widths}
