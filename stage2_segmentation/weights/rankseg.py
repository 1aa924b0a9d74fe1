"""RankSeg's checkpoints on Segmenter (He et al., ECCV 2022), and those of its baseline: mmsegmentation's names.

One file is one of these, told apart by the tensors that it has:

    joint, 1 × TransEnc    decode_head.ml_fc           its first block ranks, the others are the host's
    joint, 2 × TransDec    decode_head.img_cls_head.transformer.…
    joint, GAP + linear    decode_head.img_cls_head.1.conv, .2
    known truth            decode_head.mask_norm.gamma, a scale per position
    baseline               the rest: all labels, a scale per class

The first and the last also come with class embeddings in the backbone ("OCE").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kappaseg_core.weights.label_decoder import RULES as DECODER_RULES
from kappaseg_core.weights.label_decoder import decoder_sizes, first, flat
from kappaseg_core.weights.layout import Layout, State, below, sizes
from kappaseg_core.weights.renaming import Rule, renamed
from kappaseg_core.weights.vit import MMCV, MODEL, vit_heads, vit_settings
from stage2_segmentation.weights.mask_transformer import (
    BLOCK_PARTS,
    KIND,
    assumed_heads,
    host_rules,
    host_settings,
    inference_settings,
)

BACKBONE, DECODER = "backbone.", "decode_head."
CLASSIFIER = f"{DECODER}img_cls_head."
#: tensors that tell the backbone's sizes, with their numbers of axes
VIT_SIZES = {"patch_embed.projection.weight": 4, "pos_embed": 3, "layers.0.ffn.layers.0.0.weight": 2}
HALVES = {"backbone.mean": [0.5, 0.5, 0.5], "backbone.std": [0.5, 0.5, 0.5]}
IMAGENET = {"backbone.mean": [0.485, 0.456, 0.406], "backbone.std": [0.229, 0.224, 0.225]}
#: classes of the data sets whose published runs normalise with halves: ADE20K-150 and PASCAL-Context
WITH_HALVES = (60, 150)
#: classes of those whose label branch looks at all cells: ADE20K-Full and COCO+LVIS; the others at 8 × 8
WITH_ALL_CELLS = (847, 1284)


@dataclass(frozen=True)
class Variant:
    """One kind of file. rows: our names, beside the host's embeddings, of tensors whose rows are classes."""

    what: str
    told: dict[str, Any]
    assumed: dict[str, Any]
    rules: tuple[Rule, ...]
    rows: tuple[str, ...]
    first_block: int = 0


def layout(state: State) -> Layout:
    """The network with these tensors. Raises UserError."""
    in_backbone = f"{BACKBONE}cls_emb" in state
    _, classes, _ = sizes(state, f"{BACKBONE}cls_emb" if in_backbone else f"{DECODER}cls_emb", 3)
    for name, axes in VIT_SIZES.items():
        sizes(state, BACKBONE + name, axes)
    variant = variant_of(state, classes)
    vit = renamed(
        {name: value for name, value in state.items() if name.startswith(BACKBONE)}, below(BACKBONE, MMCV, "")
    )
    told = vit_settings(vit.tensors) | host_settings(state, DECODER, first_block=variant.first_block) | variant.told
    told["class_tokens"] = "backbone" if in_backbone else "host"
    width = sizes(vit.tensors, "patch_embed.proj.weight", 4)[0]
    oce = ", class tokens in the backbone" if in_backbone else ""
    normalised = HALVES if classes in WITH_HALVES else IMAGENET
    return Layout(
        what=f"RankSeg's {variant.what} on {told['backbone.name']}, {classes} classes{oce}",
        rules=(
            *below(BACKBONE, MMCV, MODEL), Rule(r"backbone\.cls_emb", "host.cls_emb", change=first),
            *variant.rules,
            *below(DECODER, host_rules(told["host.options.depth"], first_block=variant.first_block), ""),
        ),
        num_classes=classes, told=told,
        assumed=assumed_heads(told, width) | normalised | inference_settings(told["backbone.options.img_size"])
        | variant.assumed,
        class_rows=("host.cls_emb", *variant.rows),
    )  # fmt: skip


def variant_of(state: State, classes: int) -> Variant:
    """Which of the kinds a file is."""
    if f"{DECODER}ml_fc.W" in state:
        return encoder_variant(state, classes)
    if any(name.startswith(f"{CLASSIFIER}transformer.") for name in state):
        return decoder_variant(state)
    if any(name.startswith(CLASSIFIER) for name in state):
        return pooled_variant(state)
    if f"{DECODER}mask_norm.gamma" in state:
        told = {"source.train": "oracle", "host.options.unbiased": True}
        return Variant("network for known truth", told, {}, (), ())
    return Variant(
        "baseline", {"source.train": "complete"}, {}, (), ("host.rank_scale.weight", "host.rank_scale.bias")
    )  # fmt: skip


def joint(state: State, head: str, **options: Any) -> dict[str, Any]:
    """What is told of every network that ranks for itself; κ is the length of its rank scale."""
    kappa = sizes(state, f"{DECODER}mask_norm.weight", 1)[0]
    branch = {f"labels.options.{name}": value for name, value in options.items()}
    return {"source.train": "joint", "source.kappa": kappa, "labels.head": head, **branch}


def encoder_variant(state: State, classes: int) -> Variant:
    width = sizes(state, f"{DECODER}proj_dec.weight", 2)[0]
    ffn = sizes(state, f"{DECODER}blocks.0.mlp.fc1.weight", 2)[0]
    rules = (
        Rule(rf"blocks\.0\.{BLOCK_PARTS}", r"branch.block.\1.\2"),
        Rule(rf"decoder_norm2\.{KIND}", r"branch.norm.\1"),
        Rule(r"ml_fc\.W", "branch.weight", change=first),
        Rule(r"ml_fc\.b", "branch.bias", change=first),
    )
    assumed = {
        "labels.options.heads": vit_heads(width),
        "labels.options.pooled": 0 if classes in WITH_ALL_CELLS else 8,
    }
    return Variant(
        "joint network (1 × TransEnc)", joint(state, "encoder", ffn=ffn), assumed, tuple(below(DECODER, rules, "")),
        ("branch.weight", "branch.bias"), first_block=1,
    )  # fmt: skip


def decoder_variant(state: State) -> Variant:
    found = decoder_sizes(state, CLASSIFIER)
    told = joint(state, "decoder", layers=found["decoder_layers"], ffn=found["ffn"])
    rules = (
        Rule(r"position_embedding\.pe", None, "sine positions, which are computed for any number of cells"),
        *below("", DECODER_RULES, "branch.query2label."),
    )
    assumed = {"labels.options.heads": 8, "labels.options.pooled": 16}
    return Variant(
        "joint network (2 × TransDec)", told, assumed, tuple(below(CLASSIFIER, rules, "")),
        ("branch.query2label.weight", "branch.query2label.bias"),
    )  # fmt: skip


def pooled_variant(state: State) -> Variant:
    rules = (
        Rule(r"1\.conv\.weight", "branch.hidden.weight", change=flat),
        Rule(r"1\.conv\.bias", "branch.hidden.bias"),
        Rule(r"2\.weight", "branch.linear.linear.weight", change=flat),
        Rule(r"2\.bias", "branch.linear.linear.bias"),
    )
    return Variant(
        "joint network (GAP + linear)", joint(state, "pooled", hidden=True), {}, tuple(below(CLASSIFIER, rules, "")),
        ("branch.linear.linear.weight", "branch.linear.linear.bias"),
    )  # fmt: skip
