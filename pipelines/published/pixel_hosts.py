"""Recipes of stage two with convolutional heads: DeepLabV3, and UPerNet on Swin and BEiT (Table 7 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pipelines.published.recipe import ASYMMETRIC, RANKER, RELEASED, Recipe, Settings, scenes
from pipelines.published.sets import ADE20K, COCO_LVIS, COCO_STUFF10K, COLOURS, DataSet

SCHEMES = {
    "baseline": "baseline: all labels",
    "joint": "joint: ranks by one encoder block",
    "oracle": "oracle: the labels present, in training and test",
    "independent": f"independent: the rankings of {RANKER}",
}
SGD = {"kind": "sgd", "lr": 1e-2, "momentum": 0.9, "weight_decay": 5e-4, "poly_power": 0.9, "min_lr": 1e-4}
ADAMW = {"kind": "adamw", "decay_norms": False, "poly_power": 1.0}


@dataclass(frozen=True)
class Network:
    """A network of the paper and how it was trained.

    released: the set whose recipe is in the release.   steps: of 16 images, by set; sets without one have no recipe.
    host, labels: options of the head and of the label branch.   label_weight: None = that of the Segmenter on the set.
    crop: pixels; also the short side.   inference: further settings.   notes: of every scheme; ranked: of `joint`.
    """

    stem: str
    title: str
    backbone: Settings
    short: str
    weights: str
    kind: str
    host: Settings
    labels: Settings
    optim: Settings
    steps: Mapping[DataSet, int]
    released: DataSet
    crop: int = 512
    label_weight: float | None = None
    label_lr: float = 1.0
    inference: Settings = field(default_factory=dict)
    loop: Settings = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ranked: tuple[str, ...] = ()


DEEPLAB = Network(
    "deeplabv3_resnet101", "DeepLabV3 ResNet-101 at stride 8",
    {"name": "resnet101c", "options": {"output_stride": 8}}, "resnet101c", "resnet101c.gluon_in1k",
    "deeplabv3", {}, {"pooled": 16}, SGD, {COCO_STUFF10K: 20_000, ADE20K: 80_000, COCO_LVIS: 160_000}, COCO_STUFF10K,
    inference={"mode": "whole", "short_side": 512},
    notes=("Release: batch normalisation over all GPUs. Here: over the images of each.",),
    ranked=("The release's file names classes that its code does not have; settings as they stand in it.",),
)  # fmt: skip
SWIN = Network(
    "upernet_swin_b", "UPerNet Swin-B",
    {"name": "swin_base_patch4_window12_384", "options": {"drop_path_rate": 0.3}}, "swin_b",
    "swin_base_patch4_window12_384.ms_in22k",
    "upernet", {}, {"pooled": 0}, {**ADAMW, "lr": 6e-5, "weight_decay": 1e-2},
    {COCO_STUFF10K: 40_000, ADE20K: 160_000, COCO_LVIS: 160_000}, ADE20K, label_lr=0.1,
    inference={"mode": "whole", "short_side": 512},
    notes=(
        "Release: a floor of 1e-4 under a rate of 6e-5, by which the rate rises to 1e-4 over the training. Here: it "
        "falls to 0 in a line, as Swin's own UPerNets are trained, but without their 1,500 steps of warm-up.",
    ),
)  # fmt: skip
BEIT = Network(
    "upernet_beit_l", "UPerNet BEiT-L/16",
    {"name": "beit_large_patch16_224", "options": {"drop_path_rate": 0.2}}, "beit_l",
    "beit_large_patch16_224.in22k_ft_in22k",
    "upernet", {"width": 1024, "blocks": [7, 11, 15, 23]}, {"classes": "own", "pooled": 20, "pooling": "max"},
    {**ADAMW, "lr": 2e-5, "weight_decay": 5e-2}, {COCO_STUFF10K: 40_000, ADE20K: 160_000}, ADE20K, crop=640,
    label_weight=5.0, label_lr=0.1,
    inference={"mode": "slide", "short_side": 640, "window": 640, "stride": 426}, loop={"accumulate": 2},
    notes=("Release: 3,000 steps of warm-up, and rates that fall by 0.95 from block to block; here: neither.",),
)  # fmt: skip
NETWORKS = (DEEPLAB, SWIN, BEIT)


def pixel_networks(data: DataSet) -> Iterator[Recipe]:
    """Every scheme of the networks that the paper has on a data set."""
    for network in NETWORKS:
        if data in network.steps:
            for scheme in SCHEMES:
                yield recipe_of(data, network, scheme)


def recipe_of(data: DataSet, network: Network, scheme: str) -> Recipe:
    name, steps = f"{network.stem}_{scheme}", network.steps[data]
    (mean, std), joint = COLOURS["imagenet"], scheme == "joint"
    scale = {"rank_scale": "none"} if scheme == "baseline" else {}
    settings: Settings = {
        "name": name,
        "data": scenes(data),
        "backbone": {**network.backbone, "frozen": False, "mean": list(mean), "std": list(std)},
        "host": {"kind": network.kind, "options": {**network.host, **scale}},
        "source": source(data, scheme),
        **({"labels": labels(data, network)} if joint else {}),
        "augment": {"short_side": network.crop, "scale": [0.5, 2.0], "crop": network.crop},
        "inference": network.inference,
        "optim": {**network.optim, "schedule": "poly", "clip": None},
        "loop": {
            "steps": steps, "batch_size": 16, **network.loop, "eval_every": steps // 10, "save_every": 1000,
            "loader_workers": 8,
        },
    }  # fmt: skip
    return Recipe(
        data, name, f"{network.title}, {SCHEMES[scheme]}", "run-joint" if joint else "run-stage2", settings,
        origin(data, network, scheme), tuple(notes(network, scheme)), backbone=network.short, weights=network.weights,
    )  # fmt: skip


def source(data: DataSet, scheme: str) -> Settings:
    if scheme in ("baseline", "oracle"):
        return {"train": "complete" if scheme == "baseline" else "oracle"}
    return {"train": "joint" if scheme == "joint" else "cache", "kappa": data.kappa, "missed": "ignore"}


def labels(data: DataSet, network: Network) -> Settings:
    return {
        "head": "projected",
        "options": network.labels,
        "loss": ASYMMETRIC,
        "weight": network.label_weight or data.label_weight,
        **({"lr": network.label_lr} if network.label_lr != 1 else {}),
        "prior": False,
    }


def origin(data: DataSet, network: Network, scheme: str) -> str:
    if scheme in ("oracle", "independent"):
        return "neither in the paper nor in the release, which have this scheme with the Segmenter alone"
    if data is network.released:
        return RELEASED
    lengths = "the length is our choice" if network is BEIT else "the length is stated there"
    return f"not in the release but for its numbers; those on {network.released.title}, {lengths}"


def notes(network: Network, scheme: str) -> Iterator[str]:
    """Where paper, release and this recipe differ, and what of ours can be switched on."""
    yield from network.notes
    yield "Release: the auxiliary head has all labels. Here: the kept ones, like the network."
    if scheme == "joint":
        yield from network.ranked
        yield (
            "Paper: a temperature per rank. Here, as in the release: layer normalisation with a weight and a bias per "
            "rank; the plain network has none. Release: each forward pass ranks anew. Here: one ranking an image."
        )
        if network.label_lr != 1:
            yield "Release: the label block and its last layer learn at 0.1 of the rate. Here: the whole label branch."
        yield "Ours, which starts from better rankings: --source.missed mix --labels.prior true."
    if scheme == "independent":
        yield "Ours: kappaseg rank with --folds 4 (classifiers that did not see the image); here --source.missed mix."
