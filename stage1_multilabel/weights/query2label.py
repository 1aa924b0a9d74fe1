"""Query2Label's checkpoints (Liu et al., 2021): `checkpoint.pkl` on Swin, ResNet or TResNet.

Names begin with `module.` where the network as trained was the better one, and not where its averaged copy was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.weights.label_decoder import RULES, decoder_sizes, labels_attend
from kappaseg_core.weights.layout import Layout, State, below, sizes, square_root
from kappaseg_core.weights.renaming import Rule
from kappaseg_core.weights.resnets import RESNET_RULES, TRESNET_RULES, resnet_settings, tresnet_settings
from kappaseg_core.weights.swin import RULES as SWIN_RULES
from kappaseg_core.weights.swin import is_swin, swin_settings
from kappaseg_core.weights.vit import MODEL

IMAGENET = {"backbone.mean": [0.485, 0.456, 0.406], "backbone.std": [0.229, 0.224, 0.225]}
AS_THEY_ARE = {"backbone.mean": [0.0, 0.0, 0.0], "backbone.std": [1.0, 1.0, 1.0]}
STRIDE = 32
POSITIONS = "backbone.1.pe"


@dataclass(frozen=True)
class Trunk:
    """One family of backbones. below: where its tensors are.   image_size: side in pixels of the published runs."""

    settings: Callable[[State, str], dict[str, Any]]
    rules: tuple[Rule, ...]
    rules_below: str
    below: str
    normalised: dict[str, Any]
    image_size: int


SWIN = Trunk(swin_settings, SWIN_RULES, "backbone.0.", "backbone.0.", IMAGENET, 384)
TRESNET = Trunk(tresnet_settings, TRESNET_RULES, "backbone.0.body.", "backbone.0.body.body.", AS_THEY_ARE, 448)
RESNET = Trunk(resnet_settings, RESNET_RULES, "backbone.0.body.", "backbone.0.body.", IMAGENET, 448)


def layout(state: State) -> Layout:
    """The classifier with these tensors. Raises UserError where they are of another network, or of CvT.

    The number of attention heads is in no shape, and any divisor of the width would load: the user has to say it.
    """
    found, trunk = decoder_sizes(state), trunk_of(state)
    attend = labels_attend(state, found["decoder_layers"])
    head = {name: found[name] for name in ("width", "ffn", "encoder_layers", "decoder_layers")}
    told = {
        **trunk.settings(state, trunk.below),
        **{f"head.{name}": value for name, value in head.items()},
        "head.project": "input_proj.weight" in state, "head.self_attention": attend,
    }  # fmt: skip
    assumed = {**trunk.normalised, "head.preset": "official"}  # whose sizes all give way to those told
    if POSITIONS in state:
        told["augment.image_size"] = STRIDE * image_cells(state)
    else:
        assumed["augment.image_size"] = trunk.image_size
    return Layout(
        what=f"Query2Label on {told['backbone.name']}, {found['classes']} classes",
        rules=(
            Rule(r"backbone\.1\.pe", None, "sine positions, which are computed for any image size"),
            *below(trunk.rules_below, trunk.rules, MODEL),
            *below("", RULES, "head."),
        ),
        num_classes=found["classes"], told=told, assumed=assumed,
        class_rows=("head.queries", "head.weight", "head.bias"),
        needed={"head.heads": "add --heads N (config_new.json beside the file says nheads; 4 in the published recipe)"},
    )  # fmt: skip


def trunk_of(state: State) -> Trunk:
    if is_swin(state, SWIN.below):
        return SWIN
    if f"{TRESNET.below}conv1.0.weight" in state:
        return TRESNET
    if f"{RESNET.below}conv1.weight" in state:
        return RESNET
    raise UserError("its backbone is none of Swin, ResNet and TResNet (CvT is not in timm)")


def image_cells(state: State) -> int:
    """Side of the map in cells, from the table of positions [1, D, h, w] that was made for the training size."""
    _, _, height, width = sizes(state, POSITIONS, 4)
    return square_root(height * width, POSITIONS)
