"""Recipes of stage two: the Segmenter with ViT-B/16 and ViT-L/16 under every scheme, and its ablations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.published.recipe import ASYMMETRIC, NO_CODE, RANKER, RELEASED, Recipe, Settings, scenes
from pipelines.published.sets import ADE20K, COCO_STUFF10K, COLOURS, PASCAL_CONTEXT, DataSet

SCHEMES = ("baseline", "joint", "oracle", "independent")
LONG = 80_000

MARGIN = ("joint_gap", "joint_transdec")  # the asymmetric loss without focusing


@dataclass(frozen=True)
class Backbone:
    """size: index of its pixels in DataSet.crop and .short_side."""

    stem: str
    title: str
    name: str
    weights: str
    size: int


VIT_B = Backbone("vit_b", "ViT-B/16", "vit_base_patch16_384", "vit_base_patch16_384.augreg_in21k_ft_in1k", 0)
VIT_L = Backbone("vit_l", "ViT-L/16", "vit_large_patch16_384", "vit_large_patch16_384.augreg_in21k_ft_in1k", 1)

TITLES = {
    "baseline": "baseline: all labels",
    "joint": "joint: ranks by 1 × TransEnc",
    "oracle": "oracle: the labels present, in training and test",
    "independent": f"independent: the rankings of {RANKER}",
    "baseline_oce": "baseline with class tokens in the backbone (OCE)",
    "joint_oce": "joint with class tokens in the backbone (OCE)",
    "joint_gap": "joint: ranks by GAP + linear",
    "joint_transdec": "joint: ranks by 2 × TransDec",
}


def segmenters(data: DataSet) -> Iterator[Recipe]:
    """Every recipe of stage two on a data set."""
    for backbone in (VIT_B, VIT_L):
        for scheme in SCHEMES:
            yield segmenter(data, backbone, scheme)
            if data is COCO_STUFF10K:
                yield segmenter(data, backbone, scheme, steps=LONG)
    ablations = {COCO_STUFF10K: ("baseline_oce", "joint_oce", "joint_gap", "joint_transdec"), ADE20K: ("joint_oce",)}
    for scheme in ablations.get(data, ()):
        yield segmenter(data, VIT_B, scheme)


def segmenter(data: DataSet, backbone: Backbone, scheme: str, *, steps: int | None = None) -> Recipe:
    stem = f"segmenter_{backbone.stem}_{scheme}"
    name = stem if steps is None else f"{stem}_{steps // 1000}k"
    crop, short_side = data.crop[backbone.size], data.short_side[backbone.size]
    count = steps or data.steps
    settings: Settings = {
        "name": name,
        "data": scenes(data),
        "backbone": trunk(data, backbone),
        "host": {"kind": "segmenter", **({"options": {"unbiased": True}} if scheme == "oracle" else {})},
        "source": source(data, scheme),
        **({"labels": labels(data, backbone, scheme, count)} if is_joint(scheme) else {}),
        **({"class_tokens": "backbone"} if scheme.endswith("_oce") else {}),
        "augment": {"short_side": short_side, "scale": [0.5, 2.0], "crop": crop},
        "inference": {"mode": "slide", "short_side": short_side, "window": crop, "stride": crop},
        "optim": optim(decays=decays(data, scheme)),
        "loop": {
            "steps": count, "batch_size": 8, "eval_every": count // 10, "save_every": 1000, "loader_workers": 8,
        },
    }  # fmt: skip
    return Recipe(
        data, name, f"Segmenter {backbone.title}, {TITLES[scheme]}", "run-joint" if is_joint(scheme) else "run-stage2",
        settings, origin(data, backbone, scheme, steps), tuple(notes(data, backbone, scheme, steps)),
        backbone=backbone.stem, weights=backbone.weights, network=stem.replace("_oracle", "_baseline"),
    )  # fmt: skip


def is_joint(scheme: str) -> bool:
    return scheme.startswith("joint")


def decays(data: DataSet, scheme: str) -> bool:
    return data.label_decay and is_joint(scheme)


def trunk(data: DataSet, backbone: Backbone) -> Settings:
    mean, std = COLOURS[data.colours]
    options: Settings = {"drop_path_rate": 0.1}
    if data is PASCAL_CONTEXT and backbone is VIT_B:
        options["img_size"] = 512  # the release kept the position table of its other recipes
    return {"name": backbone.name, "frozen": False, "mean": list(mean), "std": list(std), "options": options}


def source(data: DataSet, scheme: str) -> Settings:
    if scheme.startswith("baseline"):
        return {"train": "complete"}
    if scheme == "oracle":
        return {"train": "oracle"}
    return {"train": "joint" if is_joint(scheme) else "cache", "kappa": data.kappa, "missed": "ignore"}


def labels(data: DataSet, backbone: Backbone, scheme: str, steps: int) -> Settings:
    """The label branch, its loss and its weight."""
    heads: dict[str, Settings] = {"joint_gap": {"head": "pooled"}, "joint_transdec": {"head": "decoder"}}
    head = heads.get(scheme, {"head": "encoder", "options": {"pooled": data.pooled}})
    long = data is COCO_STUFF10K and steps == LONG
    return {
        **head,
        "loss": label_loss(data, backbone, scheme),
        "weight": 5.0 if long else data.label_weight,
        **({"weight_decay": 1e-4} if data.label_decay else {}),
        "prior": False,
    }


def label_loss(data: DataSet, backbone: Backbone, scheme: str) -> Settings:
    """The released runs with ViT-B on COCO-Stuff10k have no asymmetric loss, only its clip in two ablations."""
    if data is not COCO_STUFF10K or backbone is VIT_L:
        return ASYMMETRIC
    return {"gamma_neg": 0.0, "clip": 0.05 if scheme in MARGIN else 0.0, "reduction": "mean"}


def optim(*, decays: bool) -> Settings:
    decay: Settings = {"weight_decay": 1e-6, "decay_norms": False} if decays else {"weight_decay": 0.0}
    schedule = {"schedule": "poly", "poly_power": 0.9, "min_lr": 1e-5, "clip": None}
    return {"kind": "sgd", "lr": 1e-3, "momentum": 0.9, **decay, **schedule}


def origin(data: DataSet, backbone: Backbone, scheme: str, steps: int | None) -> str:
    if scheme == "independent":
        return NO_CODE
    if backbone is VIT_L and steps and scheme != "oracle":
        return f"not in the release, which has {data.steps:,} steps"
    if backbone is VIT_L and (steps or scheme == "oracle" or data not in (COCO_STUFF10K, ADE20K)):
        return f"not in the release; those of ViT-B on this data set, with crops of {data.crop[backbone.size]} pixels"
    if steps and scheme == "oracle":
        return f"not in the release, which has {data.steps:,} steps"
    return RELEASED


def notes(data: DataSet, backbone: Backbone, scheme: str, steps: int | None) -> Iterator[str]:
    """Where paper, release and this recipe differ, and what of ours can be switched on."""
    if is_joint(scheme):
        paper, here = differences(data, backbone, scheme)
        yield f"Paper: {', '.join(paper)}. Here, as in the release: {', '.join(here)}."
        if steps:
            yield f"Label loss × 5, as released{'' if backbone is VIT_B else ' for ViT-B'}; the paper lists × 10 alone."
        yield "Release: each window of an image is ranked anew. Here, as in the paper: one ranking an image."
        yield "Ours, which starts from better rankings: --source.missed mix --labels.prior true."
    if scheme.startswith("baseline"):
        yield "Paper: one temperature. Here, as in the release: layer normalisation with a weight and a bias per label."
    if scheme.endswith("_oce"):
        yield "Release: class tokens start from zero and so stay alike. Here: from a truncated normal."
    if scheme == "independent":
        yield "Ours: kappaseg rank with --folds 4 (classifiers that did not see the image); here --source.missed mix."
    if data is PASCAL_CONTEXT and backbone is VIT_B:
        yield "The position table is made for 512 pixels, as released."


def differences(data: DataSet, backbone: Backbone, scheme: str) -> tuple[list[str], list[str]]:
    """What the joint scheme is in the paper, and here."""
    paper, here = ["a temperature per rank"], ["layer normalisation with a weight and a bias per rank"]
    if scheme in ("joint", "joint_oce"):
        paper.append("labels look at 1/32 of the image")
        here.append("at 8 × 8 cells" if data.pooled else "at all cells")
    if label_loss(data, backbone, scheme)["gamma_neg"] == 0:
        paper.append("asymmetric loss")
        here.append("its margin of 0.05 alone" if scheme in MARGIN else "binary cross-entropy")
    return paper, here
