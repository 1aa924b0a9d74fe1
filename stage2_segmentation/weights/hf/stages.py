"""The four stages of a backbone of transformers, each with a normalisation of its map or none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.weights.hf import convnext, linear, resnet, swin
from kappaseg_core.weights.layout import below
from kappaseg_core.weights.renaming import Rule, renamed
from kappaseg_core.weights.snapshot import Snapshot
from kappaseg_core.weights.vit import MODEL

BACKBONES: dict[str, Any] = {"swin": swin, "maskformer-swin": swin, "convnext": convnext, "resnet": resnet}
NORM_EPS = 1e-5  # of the hosts, unless told
STAGES = ["stage1", "stage2", "stage3", "stage4"]


@dataclass(frozen=True)
class Stages:
    """told: settings of backbone and host.   rules: from the names below `prefix` of the whole network."""

    told: dict[str, Any]
    rules: tuple[Rule, ...]


def stages_of(snapshot: Snapshot, prefix: str) -> Stages:
    """The backbone whose names begin with `prefix`. Raises UserError where it is none of BACKBONES.

    The last stage is normalised by timm's model, the others by the host.
    """
    config = snapshot.config.get("backbone_config") or {}
    kind = str(config.get("model_type"))
    if kind not in BACKBONES:
        raise UserError(f"its backbone is {kind!r}, wanted one of {', '.join(BACKBONES)}")
    if config.get("out_features", STAGES) != STAGES:
        raise UserError(f"its head reads {', '.join(config['out_features'])} of its {kind}, wanted {', '.join(STAGES)}")
    module = BACKBONES[kind]
    inside = {name: value for name, value in snapshot.tensors.items() if name.startswith(prefix)}
    told = module.settings(config, renamed(inside, below(prefix, module.RULES, "")).tensors)
    told["host.options.norm_stages"] = module.EPS is not None
    if module.EPS is None:
        return Stages(told, tuple(below(prefix, module.RULES, MODEL)))
    if module.EPS != NORM_EPS:
        told["host.options.norm_eps"] = module.EPS
    norms = [
        linear(rf"{re.escape(prefix)}hidden_states_norms\.(?:stage{n + 1}|{n})", f"host.levels.norms.{n}")
        for n in range(len(STAGES) - 1)
    ]
    return Stages(told, (*norms, *below(prefix, module.RULES, MODEL)))
