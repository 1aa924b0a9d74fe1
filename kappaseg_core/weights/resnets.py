"""ResNet of torchvision and TResNet: the published parameter names → timm's, and the models of timm."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kappaseg_core.errors import UserError
from kappaseg_core.weights.layout import State, layers, sizes
from kappaseg_core.weights.renaming import Rule

STAGES = (1, 2, 3, 4)
SMALLEST = 1e-5  # of a TResNet's scales

#: (has bottlenecks, blocks of the stages) → the model of timm
RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
}
#: (first width, blocks of the stages) → the model of timm
TRESNETS = {
    (64, (3, 4, 11, 3)): "tresnet_m",
    (76, (4, 5, 18, 3)): "tresnet_l",
    (83, (4, 5, 24, 3)): "tresnet_xl",
    (64, (3, 4, 23, 3)): "tresnet_v2_l",
}

RESNET_RULES = (Rule(r"((?:conv1|bn1|layer\d)\..*)", r"\1"),)


def scale(weight: Tensor) -> Tensor:
    """In-place batch normalisation takes the absolute value of its scale and adds eps; timm's has a plain scale."""
    return weight.abs() + SMALLEST


CONVOLUTION = r"(body\.(?:layer\d\.\d+\.)?(?:conv\d|downsample\.\d))\.(?:0\.)?"
#: A convolution and its normalisation are 0 and 1 of a sequence, inside another one where a blur follows.
TRESNET_RULES = (
    Rule(rf"{CONVOLUTION}1\.weight", r"\1.bn.weight", change=scale),
    Rule(rf"{CONVOLUTION}1\.(bias|running_mean|running_var|num_batches_tracked)", r"\1.bn.\2"),
    Rule(rf"{CONVOLUTION}0\.weight", r"\1.conv.weight"),
    Rule(r"(body\.layer\d\.\d+\.se\.fc[12]\.(?:weight|bias))", r"\1"),
)


def resnet_settings(state: State, prefix: str) -> dict[str, Any]:
    """The settings of a ResNet with these tensors. Raises UserError."""
    bottlenecks = f"{prefix}layer1.0.conv3.weight" in state
    return {"backbone.kind": "timm", "backbone.name": known(RESNETS, "ResNet", (bottlenecks, blocks(state, prefix)))}


def tresnet_settings(state: State, prefix: str) -> dict[str, Any]:
    """The settings of a TResNet with these tensors. Raises UserError."""
    width = sizes(state, f"{prefix}conv1.0.weight", 4)[0]
    return {"backbone.kind": "timm", "backbone.name": known(TRESNETS, "TResNet", (width, blocks(state, prefix)))}


def blocks(state: State, prefix: str) -> tuple[int, ...]:
    return tuple(layers(state, rf"{prefix}layer{stage}\.(\d+)\.") for stage in STAGES)


def known(names: dict[Any, str], family: str, found: tuple[Any, tuple[int, ...]]) -> str:
    if found not in names:
        there = ", ".join(f"{name} {key[1]}" for key, name in names.items())
        raise UserError(f"its {family} has {found[1]} blocks in its stages, wanted those of {there}")
    return names[found]
