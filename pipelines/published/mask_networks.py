"""Recipes of stage two with mask networks: MaskFormer and Mask2Former, semantic and panoptic.

The release has Mask2Former alone; for MaskFormer it states numbers, and the settings are after MaskFormer's own and
were not compared with its files one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pipelines.published.recipe import ASYMMETRIC, RANKER, RELEASED, Recipe, Settings, scenes
from pipelines.published.sets import ADE20K, ADE20K_PANOPTIC, COCO_PANOPTIC, COLOURS, DataSet

SCHEMES = {
    "baseline": "baseline: all labels",
    "joint": "joint: ranks by one encoder block over the queries",
    "oracle": "oracle: the labels present, in training and test",
    "independent": f"independent: the rankings of {RANKER}",
}
#: one linear layer on the queries, then an encoder block with class tokens of its own
LABEL_BRANCH: Settings = {"classes": "own", "width": 512, "pooled": 0, "projection": "linear"}
ADAMW: Settings = {
    "kind": "adamw", "lr": 1e-4, "backbone_lr": 0.1, "weight_decay": 0.05, "decay_norms": False, "schedule": "poly",
    "poly_power": 0.9, "clip": 0.01,
}  # fmt: skip
SWIN_B = ("swin_b", "Swin-B", "swin_base_patch4_window12_384", "swin_base_patch4_window12_384.ms_in22k")
SWIN_L = ("swin_l", "Swin-L", "swin_large_patch4_window12_384", "swin_large_patch4_window12_384.ms_in22k")
RESNET50 = ("resnet50", "ResNet-50", "resnet50", "resnet50.tv_in1k")
ADE_VIEWS: Settings = {"short_side": 640, "scale": [0.5, 2.0], "crop": 640, "max_share": 1.0}

IN_TENTHS = "Release: the scale is one of 16, from 0.5 to 2. Here: any between."
DECAYED = "Release: biases decay, tables of queries and of positions do not. Here: the other way round."
HALF = "Release: fp16. Here: bf16."
MASK2FORMER = (HALF, DECAYED)


@dataclass(frozen=True)
class Network:
    """A network on a data set, and how it was trained.

    backbone: its short name, its title, timm's name, that of the published weights.   host: options of the head.
    steps: of 16 images.   released: whether the release has the settings, not just the numbers.
    short_side: in the test.   segments: how they are made of queries, where not by the usual thresholds.
    label_weight: of the label loss.   notes: of every scheme; ranked: of `joint`.
    """

    kind: str
    data: DataSet
    backbone: tuple[str, str, str, str]
    steps: int = 160_000
    host: Settings = field(default_factory=dict)
    optim: Settings = field(default_factory=dict)
    augment: Mapping[str, object] = field(default_factory=lambda: ADE_VIEWS)
    short_side: int = 640
    segments: Settings = field(default_factory=dict)
    precision: str | None = "bf16"
    label_weight: float = 10.0
    notes: tuple[str, ...] = (IN_TENTHS, *MASK2FORMER)
    ranked: tuple[str, ...] = ()

    @property
    def released(self) -> bool:
        return self.kind == "mask2former"

    @property
    def title(self) -> str:
        return f"{'Mask2Former' if self.released else 'MaskFormer'} {self.backbone[1]}"


CROPS = "The release's table says crops of 512, its settings 640, as here."
NETWORKS = (
    Network(
        "maskformer", ADE20K, SWIN_B, optim={"lr": 6e-5, "backbone_lr": 1.0, "weight_decay": 0.01}, precision=None,
        notes=(
            "The release's table says crops of 512; those of MaskFormer's release are of 640, as here.",
            IN_TENTHS, DECAYED, "MaskFormer's release: 1,500 steps of warm-up; here none.",
        ),
    ),
    Network(
        "maskformer", ADE20K_PANOPTIC, RESNET50, 720_000, {"norm_stages": False}, {"weight_decay": 1e-4},
        segments={"score": 0.7, "overlap": 0.8, "least": 0.0}, precision=None,
        notes=(
            IN_TENTHS, DECAYED,
            "MaskFormer's release: six encoder layers over the last map, which the host here does not have; and "
            "batch normalisation with the statistics of the pretrained weights. Here: of each GPU's images.",
        ),
    ),
    Network("mask2former", ADE20K, SWIN_B, notes=(CROPS, IN_TENTHS, *MASK2FORMER)),
    Network("mask2former", ADE20K, SWIN_L, notes=(CROPS, IN_TENTHS, *MASK2FORMER)),
    Network("mask2former", ADE20K_PANOPTIC, SWIN_L, host={"queries": 200}, notes=(CROPS, IN_TENTHS, *MASK2FORMER)),
    Network(
        "mask2former", COCO_PANOPTIC, SWIN_B, 368_750, label_weight=100.0, short_side=800,
        augment={"short_side": 768, "scale": [0.1, 2.0], "crop": 1024, "max_share": 1.0, "photometric": False},
        notes=(
            "Release: scales of 0.1 to 2 times 1,024 of the longer side. Here: the same of the shorter side, of which "
            "an image of 4 to 3 has 768. Release: the longer side is at most 1,333 in the test.",
            "Release: the rate falls to a tenth at 327,778 steps and again at 355,092. Here: as on ADE20K.",
            *MASK2FORMER,
        ),
        ranked=("Release: κ = 150 of 133 labels, with which its code fails. Here: κ = K.",),
    ),
)  # fmt: skip


def mask_networks(data: DataSet) -> Iterator[Recipe]:
    """Every scheme of the mask networks that paper or release have on a data set."""
    for network in NETWORKS:
        if network.data is data:
            for scheme in SCHEMES:
                yield recipe_of(network, scheme)


def recipe_of(network: Network, scheme: str) -> Recipe:
    data, (short, _, trunk, pretrained) = network.data, network.backbone
    stem, joint = f"{network.kind}_{short}", scheme == "joint"
    (mean, std), name, steps = COLOURS["imagenet"], f"{stem}_{scheme}", network.steps
    options = {"drop_path_rate": 0.3} if trunk.startswith("swin") else {}
    settings: Settings = {
        "name": name,
        "data": scenes(data, objects=True),
        "backbone": {
            "name": trunk, **({"options": options} if options else {}), "frozen": False, "mean": list(mean),
            "std": list(std),
        },
        "host": {"kind": network.kind, "options": host_options(network, scheme)},
        "source": source(data, scheme),
        **({"labels": labels(network)} if joint else {}),
        "augment": dict(network.augment),
        "inference": {
            "mode": "whole", "short_side": network.short_side,
            **({"segments": network.segments} if network.segments else {}),
        },
        "optim": {**ADAMW, **network.optim},
        "loop": {
            "steps": steps, "batch_size": 16, "eval_every": steps // 10, "save_every": 1000, "loader_workers": 8,
            **({"precision": network.precision} if network.precision else {}),
        },
    }  # fmt: skip
    return Recipe(
        data, name, f"{network.title}, {SCHEMES[scheme]}", "run-joint" if joint else "run-stage2", settings,
        origin(network, scheme), tuple(notes(network, scheme)), backbone=short, weights=pretrained,
        network=f"{stem}_baseline" if scheme == "oracle" else "",
    )  # fmt: skip


def host_options(network: Network, scheme: str) -> Settings:
    """A linear layer where nothing is ranked, as released; else the default, cosines and their normalisation."""
    return {
        **network.host,
        **({"target": "objects"} if network.data.objects else {}),
        **({"rank_scale": "none"} if scheme in ("baseline", "oracle") else {}),
    }


def source(data: DataSet, scheme: str) -> Settings:
    """`joint` keeps all labels, as released; where a classifier ranks, as many as with the Segmenter."""
    if scheme in ("baseline", "oracle"):
        return {"train": "complete" if scheme == "baseline" else "oracle"}
    if scheme == "joint":
        return {"train": "joint", "kappa": data.classes, "missed": "ignore"}
    return {"train": "cache", "kappa": data.kappa, "missed": "ignore"}


def labels(network: Network) -> Settings:
    return {
        "head": "projected", "options": LABEL_BRANCH, "loss": ASYMMETRIC, "weight": network.label_weight, "lr": 0.1,
        "prior": False,
    }  # fmt: skip


def origin(network: Network, scheme: str) -> str:
    if scheme == "independent":
        return "neither in the paper nor in the release, which have this scheme with the Segmenter alone"
    if network.released:
        return RELEASED
    return "not in the release but for its numbers; after MaskFormer's own, not compared file by file"


def notes(network: Network, scheme: str) -> Iterator[str]:
    """Where paper, release and this recipe differ, and what of ours can be switched on."""
    yield from network.notes
    if scheme == "joint":
        yield from network.ranked
        if not network.released:
            yield "Label branch, its weight and rate, and κ: as released for Mask2Former."
        yield (
            "Paper: a temperature per rank. Here, as released for Mask2Former: cosines, and layer normalisation with a "
            "weight and a bias per rank and for no object; the plain network has a linear layer. κ = K leaves out no "
            "label: it is the order alone that counts. Release: each forward pass ranks anew. Here: one ranking an "
            "image."
        )
        yield "Ours, which leaves labels out: --source.kappa 50 --source.missed mix --labels.prior true."
    if scheme == "oracle":
        yield (
            "Release: absent labels get a logit of -100 behind the last layer, in training too. Here: every layer "
            "compares the labels present alone."
        )
    if scheme == "independent":
        yield f"κ = {network.data.kappa}, as of the Segmenter on ADE20K."
        yield "Ours: kappaseg rank with --folds 4 (classifiers that did not see the image); here --source.missed mix."
